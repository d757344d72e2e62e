"""Accuracy: cells are run once, methods are valid settings, and the tables say what scipy says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from benchmarks import accuracy, accuracy_cell
from benchmarks import rows as rows_of
from benchmarks.accuracy_methods import DIGIT_IMAGES, FEW_DIGITS, METHODS, TASKS
from benchmarks.accuracy_plan import (
    FIRST_RATES,
    FIRST_TUNING_SEED,
    Cell,
    Regime,
    Request,
    best_rate,
    cells,
    make_cell,
    rates_to_try,
    run_length,
)
from benchmarks.accuracy_plots import draw
from benchmarks.accuracy_table import lines, tables
from benchmarks.rows import ROOT
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.data import load_task

TINY = Regime("digits", steps=22, width=2)
STEPS = 22  # of an epoch of digits


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings name the nets' file from the root, where cells run."""
    monkeypatch.chdir(ROOT)


def cell_of(method: str, folder: Path, regime: Regime = TINY, **options: Any) -> Cell:
    return make_cell(regime, method, "report", 0.1, 0, cache=folder, **options)


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(accuracy.app, arguments, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# -- rows that are there already ---------------------------------------------------------------------------------------


def test_a_cell_is_run_once_and_again_when_its_code_or_settings_are_others(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    asked = ["--task", "digits", "--methods", "baseline", "--lr", "0.1", "--seeds", "1", "--steps", "22"]
    asked += ["--jobs", "1", "--out", str(out), "--cache", str(tmp_path / "cache")]
    code, shown = call(*asked)
    assert code == 0, shown
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (row["name"], row["method"], row["role"]) == ("digits steps=22 baseline lr=0.1 seed=0", "baseline", "report")
    assert (row["steps"], row["images"], row["parameters"]) == (22, 22 * 64, 1710)
    assert row["settings"][0]["optim"]["lr"] == 0.1
    assert 0 < row["val_accuracy"] < 1
    assert 0 < row["train_accuracy"] < 1
    assert row["val_loss"] > 0
    assert row["cpu_seconds"] > 0
    assert [point["step"] for point in row["curve"]] == [22]
    assert row["versions"] == accuracy.versions()
    assert "| `baseline` | 0.1 | 1 |" in shown
    assert not list((tmp_path / "cache" / "cells").iterdir()), "what a finished cell kept is still there"

    before = out.read_text()
    assert call(*asked)[0] == 0
    assert out.read_text() == before
    older = before.replace(row["versions"]["code"], "0" * 12)
    out.write_text(older)
    assert call(*asked, "--keep-older")[0] == 0
    assert out.read_text() == older
    out.write_text(older + '{"name": "cut sh')
    assert call(*asked)[0] == 0
    again = json.loads(out.read_text().splitlines()[-1])
    assert again["versions"] == row["versions"]
    assert again["val_accuracy"] == row["val_accuracy"], "the same cell came to something else"


def test_a_row_of_other_settings_or_without_its_teacher_is_not_done(tmp_path: Path) -> None:
    stamp = {"code": "a"}
    cell = cell_of("baseline", tmp_path)
    row = {"versions": stamp, "settings": json.loads(json.dumps(cell.settings))}
    assert accuracy.is_done(row, cell, stamp)
    assert not accuracy.is_done(row, cell, {"code": "b"})
    assert accuracy.is_done(row, cell, None)
    assert not accuracy.is_done(None, cell, None)
    del row["settings"][0]["optim"]["mixup"]
    assert accuracy.is_done(row, cell, None), "a setting that came later had its default"
    row["settings"][0]["optim"]["momentum"] = 0.8
    assert not accuracy.is_done(row, cell, stamp)
    teacher = make_cell(TINY, "teacher", "teacher", 0.1, 999, cache=tmp_path)
    row = {"versions": stamp, "settings": teacher.settings}
    assert not accuracy.is_done(row, teacher, stamp)
    assert teacher.weights is not None
    teacher.weights.parent.mkdir()
    teacher.weights.touch()
    assert accuracy.is_done(row, teacher, stamp)


# -- methods and tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_method_is_valid_settings_of_every_task(task: str, tmp_path: Path) -> None:
    for name, method in METHODS.items():
        cell = cell_of(name, tmp_path, Regime(task))
        assert len(cell.config.active_arms) == 1, name
        assert (cell.config.distill.teacher_weights is not None) is method.taught
        assert cell.config.threads == 1
        for setting, value in method.settings.items():
            found: Any = cell.config.model_dump()
            for part in setting.split("."):
                found = found[part]
            assert found == value, (name, setting)
    names = {cell_of(name, tmp_path, Regime(task)).name for name in METHODS}
    assert len(names) == len(METHODS)


def test_lengths_are_whole_epochs() -> None:
    assert run_length(2000, None, 128) == (10, 200 * 128, 2000)
    assert run_length(4, None, 16) == (4, 16, 4)
    assert run_length(620, 2000, 64) == (20, 2000, 620)
    assert run_length(30, DIGIT_IMAGES, 64) == (1, DIGIT_IMAGES, STEPS)
    for fraction, images in ((0.2, DIGIT_IMAGES), (0.9, FEW_DIGITS)):
        digits = load_task(
            load_config(TrainConfig, None, {"data.name": "digits", "data.val_fraction": fraction}).data, 0
        )
        assert len(digits.train) == images


def test_longer_methods_have_their_steps(tmp_path: Path) -> None:
    glyphs = Regime("glyphs", steps=1000)
    assert cell_of("4x", tmp_path, glyphs).steps == 4000
    equal = cell_of("equal-time", tmp_path, glyphs, longer=2.5)
    assert equal.steps == 2500
    assert equal.config.data.train_samples == 250 * 128
    assert cell_of("equal-time", tmp_path, Regime("digits", steps=10 * STEPS), longer=2.5).config.optim.epochs == 25


def test_regimes_change_what_they_name(tmp_path: Path) -> None:
    regime = Regime("glyphs", steps=50, width=20, size=28, images=640, extra=(("netaug.alpha", 3),))
    config = cell_of("netaug", tmp_path, regime).config
    assert (config.data.image_size, config.model.kwargs["side"], config.model.kwargs["width"]) == (28, 28, 20)
    assert (config.data.train_samples, config.data.fresh, config.optim.epochs) == (640, False, 10)
    assert config.netaug.alpha == 3
    assert cell_of("alpha=2", tmp_path, regime).config.netaug.alpha == 2, "a method's own settings win"
    assert regime.label == "glyphs steps=50 width=20 size=28 images=640 netaug.alpha=3"
    teacher = make_cell(regime, "teacher", "teacher", 0.1, 999, cache=tmp_path)
    assert teacher.config.model.kwargs["width"] == 42
    assert "lr=0.1 seed=0" in cell_of("netaug", tmp_path, regime).name


# -- what follows from rows --------------------------------------------------------------------------------------------


def made(method: str, accuracy: float | None, seed: int = 0, lr: float = 0.1, **more: Any) -> dict[str, Any]:
    role = "tuning" if seed >= FIRST_TUNING_SEED else "report"
    row = {"name": f"digits {method} lr={lr:g} seed={seed}", "task": "digits", "regime": "digits", "method": method}
    row |= {"role": role, "lr": lr, "seed": seed, "steps": 100, "val_accuracy": accuracy, "versions": {"code": "x"}}
    if accuracy is None:
        return row | {"error": "no longer finite"} | more
    curve = [{"step": 50, "val_accuracy": accuracy / 2}, {"step": 100, "val_accuracy": accuracy}]
    return row | {"train_accuracy": accuracy, "cpu_seconds": 10.0, "parameters": 1000, "curve": curve} | more


def test_equal_differences_are_not_tested() -> None:
    """Two images more of 359 at each of two seeds, but for rounding: found with p = 3e-06."""
    pairs = [(351, 353), (354, 356)]
    rows = [
        made(name, float(np.float32(pair[side] / 359)), seed)
        for seed, pair in enumerate(pairs)
        for side, name in enumerate(("baseline", "dropblock"))
    ]
    _, line = lines(rows)
    assert line.difference == pytest.approx(100 * 2 / 359, abs=1e-5)
    assert (line.p, line.interval) == (None, None)


def test_the_tables_statistics_are_scipys() -> None:
    rng = np.random.default_rng(0)
    plain, ours = 0.8 + 0.01 * rng.standard_normal(6), 0.81 + 0.01 * rng.standard_normal(6)
    rows = [made("baseline", float(plain[seed]), seed) for seed in range(6)]
    rows += [made("netaug", float(ours[seed]), seed, cpu_seconds=30.0) for seed in (5, 3, 1, 0, 2, 4)]
    rows += [made("netaug", 0.0, 7), made("netaug", None, 8), made("baseline", 0.1, 0, lr=0.2)]
    baseline, _, netaug = lines(rows)
    assert (baseline.method, baseline.n, baseline.difference, baseline.time) == ("baseline", 6, None, None)
    assert baseline.mean == pytest.approx(100 * plain.mean())
    assert baseline.deviation == pytest.approx(100 * plain.std(ddof=1))
    differences = 100 * (ours - plain)
    assert (netaug.n, netaug.diverged, netaug.time) == (7, 1, 3.0)
    assert netaug.difference == pytest.approx(differences.mean())
    assert netaug.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    expected = stats.t.interval(0.95, 5, loc=differences.mean(), scale=stats.sem(differences))
    assert netaug.interval == pytest.approx(expected)
    shown = tables(rows)
    assert f"{differences.mean():+.2f} | {expected[0]:+.2f} to {expected[1]:+.2f} |" in shown
    assert "7, 1 diverged" in shown


def test_any_method_can_be_compared_with() -> None:
    """That two together are better than each alone is not told by what either is over the baseline."""
    accuracies = {"baseline": (0.4, 0.42), "kd": (0.6, 0.63), "netaug+kd": (0.7, 0.69)}
    rows = [made(name, of[seed], seed) for name, of in accuracies.items() for seed in (0, 1)]
    baseline, kd, both = lines(rows, "kd")
    assert baseline.difference == pytest.approx(-20.5)
    assert (kd.difference, kd.p) == (None, None)
    assert both.difference == pytest.approx(8.0)
    assert both.p == pytest.approx(stats.ttest_1samp([10.0, 6.0], 0).pvalue)
    assert "| against kd |" in tables(rows, "kd")


def test_one_seed_and_equal_results_are_not_tested() -> None:
    rows = [made("baseline", 0.5), made("netaug", 0.6), made("kd", 0.5, 1)]
    _, netaug, kd = lines(rows)
    assert (netaug.difference, netaug.interval, netaug.p) == (pytest.approx(10), None, None)
    assert kd.difference is None, "there is no baseline of that seed"
    assert "nan" not in tables(rows)


def test_methods_are_compared_at_their_own_best_rates() -> None:
    tuning = [made("baseline", 0.8 - abs(lr - 0.1), FIRST_TUNING_SEED, lr) for lr in (0.0125, 0.05, 0.1, 0.2, 0.4)]
    tuning += [made("netaug", 0.9 if lr < 0.4 else None, FIRST_TUNING_SEED, lr) for lr in (0.1, 0.2, 0.4)]
    tuning += [made("netaug", 0.95, FIRST_TUNING_SEED, 0.0125)]
    reported = [made("baseline", 0.7, lr=0.1), made("netaug", 0.75, lr=0.0125), made("netaug", 0.1, lr=0.1)]
    _, netaug = lines([*tuning, *reported])
    assert (netaug.lr, netaug.tuned, netaug.difference) == (0.0125, True, pytest.approx(5.0))
    shown = tables([*tuning, *reported])
    assert "| `netaug` | 0.0125 (edge) |" in shown
    assert "| `netaug` | 95.00 |  | 90.00 | 90.00 | diverged |" in shown


def test_a_rate_that_fewer_seeds_have_tried_is_not_the_best() -> None:
    """A lucky seed at a rate of its own took the table to another rate than the one that was run."""
    tuning = [made("netaug", 0.8, FIRST_TUNING_SEED + n, 0.2) for n in range(3)]
    tuning += [made("netaug", 0.7, FIRST_TUNING_SEED + n, 0.1) for n in range(3)]
    tuning += [made("netaug", 0.9, FIRST_TUNING_SEED, 0.4), made("baseline", 0.5, FIRST_TUNING_SEED, 0.8)]
    assert best_rate(tuning, "netaug") == 0.2
    assert best_rate(tuning, "baseline") == 0.8
    assert best_rate(tuning, "kd") is None


def test_rates_are_tried_until_the_best_has_worse_neighbours() -> None:
    def tried(accuracy: Callable[[float], float]) -> list[float]:
        found: dict[float, float] = {}
        while missing := rates_to_try(found):
            found |= {rate: accuracy(rate) for rate in missing}
        return sorted(found)

    assert tried(lambda rate: -abs(rate - 0.2)) == [0.1, 0.2, 0.4]
    assert tried(lambda rate: -abs(rate - 0.9)) == [0.2, 0.4, 0.8, 1.6]
    assert tried(lambda rate: rate)[-1] == 6.4
    assert tried(lambda rate: -rate)[0] == 0.0125
    assert rates_to_try({0.025: 0.1, 0.4: 0.9}) == [0.2, 0.8], "rates in between are not needed"


def test_the_best_rate_is_found_before_seeds_are_reported(tmp_path: Path) -> None:
    request = Request(Regime("digits"), ("baseline", "netaug", "kd", "equal-time"), None, 2, 1, tmp_path)
    first = list(cells(request, []))
    assert [cell.role for cell in first] == ["teacher", *["tuning"] * 2 * len(FIRST_RATES)]
    assert {cell.method for cell in first} == {"teacher", "baseline", "netaug"}, "kd waits for its teacher"
    assert {cell.seed for cell in first[1:]} == {FIRST_TUNING_SEED}
    rates = (0.025, 0.05, 0.1, 0.2, 0.4)
    rows = [made("baseline", 0.5 + (lr == 0.2) / 10, FIRST_TUNING_SEED, lr, cpu_seconds=10.0) for lr in rates]
    rows += [made("netaug", 0.6 if lr == 0.05 else None, FIRST_TUNING_SEED, lr, cpu_seconds=40.0) for lr in rates]
    rows.append(made("teacher", 0.9, role="teacher", name=first[0].name))
    second = list(cells(request, rows))
    reported = [(cell.method, cell.lr, cell.seed) for cell in second if cell.role == "report"]
    assert reported == [("baseline", 0.2, 0), ("netaug", 0.05, 0), ("baseline", 0.2, 1), ("netaug", 0.05, 1)]
    equal = [cell for cell in second if cell.method == "equal-time"]
    assert [cell.lr for cell in equal] == list(FIRST_RATES)
    assert {cell.steps for cell in equal} == {4 * 136 * STEPS}
    assert {cell.role for cell in second if cell.method == "kd"} == {"tuning"}
    climbing = list(cells(request, [row for row in rows if row["lr"] >= 0.2]))
    assert [cell.lr for cell in climbing if cell.method == "baseline"] == [0.1, 0.2, 0.4]
    assert not [cell for cell in climbing if cell.role == "report"]


def test_pictures_are_drawn(tmp_path: Path) -> None:
    rows = [
        made(method, 0.5 + seed / 50 + bonus, seed)
        for seed in range(3)
        for method, bonus in (("baseline", 0), ("netaug", 0.01 * seed))
    ]
    files = draw(rows, tmp_path)
    assert [file.name for file in files] == ["accuracy_digits_differences.png", "accuracy_digits_curves.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert next(file.name for file in draw(rows, tmp_path, "netaug")) == "accuracy_digits_against_netaug.png"
    assert draw([made("teacher", 0.5, role="teacher")], tmp_path) == []


# -- a whole run, without the training ---------------------------------------------------------------------------------


def pretend(cell: Cell, *_rest: Any) -> dict[str, Any]:
    """A row as of a trained cell: the best rate is 0.2, and a step of `netaug` takes four times as long."""
    if cell.weights is not None:
        cell.weights.parent.mkdir(exist_ok=True)
        cell.weights.touch()
    seconds = cell.steps * (4.0 if cell.method == "netaug" else 1.0)
    facts = made(cell.method, 0.9 - abs(cell.lr - 0.2) + cell.seed / 1e4, cpu_seconds=seconds)
    return {**facts, **accuracy_cell._facts(cell)}


def test_a_whole_run_goes_from_teacher_and_rates_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_run_one", pretend)
    out = tmp_path / "rows.jsonl"
    asked = ["--task", "digits", "--methods", "main", "--seeds", "2", "--out", str(out), "--cache", str(tmp_path)]
    code, shown = call(*asked)
    assert code == 0, shown
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    main = [name for name, method in METHODS.items() if method.group == "main"]
    assert len(rows) == len({row["name"] for row in rows}) == 1 + len(main) * (3 * 3 + 2)
    reported = [row for row in rows if row["role"] == "report"]
    assert {row["lr"] for row in reported} == {0.2}
    assert {row["steps"] for row in reported if row["method"] == "equal-time"} == {4 * 136 * STEPS}
    assert all(f"| `{name}` | 0.2 | 2 |" in shown for name in main)
    assert call(*asked)[0] == 0
    assert len(out.read_text().splitlines()) == len(rows)
    call(*asked, "--seeds", "3")
    assert len(out.read_text().splitlines()) == len(rows) + len(main)


def test_a_broken_cell_ends_no_other_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cell: Cell, *_rest: Any) -> dict[str, Any]:
        if (cell.method, cell.lr) == ("netaug", 0.4):
            return {"name": cell.name, "crashed": "MemoryError: too large"}
        return pretend(cell)

    monkeypatch.setattr(accuracy, "_run_one", broken)
    out = tmp_path / "rows.jsonl"
    asked = ["--task", "digits", "--methods", "baseline,netaug", "--seeds", "2", "--out", str(out)]
    code, shown = call(*asked, "--cache", str(tmp_path))
    assert code == 1
    assert "Without a row:\ndigits netaug lr=0.4 seed=1000: MemoryError: too large" in shown
    assert "| `baseline` | 0.2 | 2 |" in shown
    assert "| `netaug` | 0.2 |" not in shown, "its best rate is not known"
    monkeypatch.setattr(accuracy, "_run_one", pretend)
    code, shown = call(*asked, "--cache", str(tmp_path))
    assert code == 0
    assert "| `netaug` | 0.2 | 2 |" in shown


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "netag"], "'netag' is no method. There are main, ablation, and baseline, netaug"),
        (["--methods", "equal-time,baseline"], "equal-time takes its length from baseline and netaug"),
        (["--lr", "high"], "'high' is neither 'auto' nor positive numbers"),
        (["--lr", "0.1,0"], "'0.1,0' is neither 'auto' nor positive numbers"),
        (["--set", "netaug.alpha"], "'netaug.alpha' is not NAME=VALUE"),
        (["--set", "netaug.alpa=2"], "unknown setting 'netaug.alpa'; did you mean netaug.alpha"),
        (["--set", "netaug.alpha=-2"], "setting 'netaug.alpha': found -2"),
        (["--train-images", "100"], "--train-images does not apply to the task 'digits'"),
        (["--seeds", "2000"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_bad_options_are_named(options: list[str], said: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    code, shown = call("--task", "digits", "--out", str(out), *options)
    assert code == 2
    assert said in " ".join(shown.replace("│", " ").split())
    assert not out.exists()


def test_a_net_of_one_size_has_no_width(tmp_path: Path) -> None:
    code, shown = call("--task", "small", "--net-width", "4", "--out", str(tmp_path / "rows.jsonl"))
    assert code == 2
    assert "--net-width and --net-depth do not apply to the task 'small'" in " ".join(shown.replace("│", " ").split())


def test_tables_are_printed_without_running(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    rows = [made("baseline", 0.5), made("two-draws", 0.6), made("netaug", 0.7, regime="digits width=9")]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, shown = call("--task", "digits", "--table", "--plot", "--out", str(out))
    assert code == 0
    assert "| `two-draws` | 0.1 | 1 | 60.00 | 60.00 | +10.00 |" in shown
    assert "**digits width=9**" in shown
    assert len(out.read_text().splitlines()) == 3
    assert (tmp_path / "accuracy_digits_differences.png").exists()
    shown = call("--task", "digits", "--table", "--methods", "two-draws", "--against", "netaug", "--out", str(out))[1]
    assert "| against netaug |" in shown
    assert "no method" in call("--task", "digits", "--table", "--against", "naetug", "--out", str(out))[1]
    assert "no rows yet" in call("--task", "fonts", "--table", "--out", str(tmp_path / "none.jsonl"))[1]


def test_every_task_and_method_is_explained() -> None:
    code, shown = call("--list")
    assert code == 0
    assert all(name in shown for name in (*TASKS, *METHODS))
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert all(f"`{name}`" in page for name in (*TASKS, *METHODS))


@pytest.mark.parametrize("file", sorted((ROOT / accuracy.RESULTS).glob("accuracy_*.jsonl")), ids=lambda file: file.stem)
def test_the_readme_shows_the_stored_results(file: Path) -> None:
    assert tables(list(rows_of.read(file).values())) in (ROOT / "benchmarks" / "README.md").read_text()


def test_rows_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    """Or a teacher kept in another folder would make all that it taught be run anew."""
    here, there = (
        make_cell(Regime("digits"), "kd", "report", 0.1, 0, cache=tmp_path / name) for name in ("here", "there")
    )
    assert here.config.distill.teacher_weights != there.config.distill.teacher_weights
    assert (here.settings, here.key) == (there.settings, there.key)
    assert str(tmp_path) not in str(here.settings)
