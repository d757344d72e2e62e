"""Accuracy: cells are run once, methods are valid settings, and the tables say what scipy says."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from typer.testing import CliRunner

import netaug_fx
from benchmarks import accuracy, accuracy_cell
from benchmarks.accuracy_cell import attempt, run_cell, share_statistics_
from benchmarks.accuracy_methods import DIGIT_IMAGES, METHODS, TASKS
from benchmarks.accuracy_nets import DropBlock, resnet18, tiny
from benchmarks.accuracy_plan import FIRST_TUNING_SEED, GRID, Cell, Regime, Request, cells, make_cell, run_length
from benchmarks.accuracy_plots import draw
from benchmarks.accuracy_table import lines, tables
from benchmarks.rows import ROOT
from netaug_fx.training.config import load_config
from netaug_fx.training.data import load_task, make_loaders

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


# -- one cell ----------------------------------------------------------------------------------------------------------


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


def test_a_killed_cell_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_cell, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(accuracy_cell, "TELL_STEPS", 1)
    ticks = itertools.count()  # the clock of the CPU ticks once whenever it is looked at
    clock = SimpleNamespace(process_time=lambda: next(ticks), monotonic=time.monotonic)
    monkeypatch.setattr(accuracy_cell, "time", clock)
    cell = cell_of("netaug", tmp_path, dataclasses.replace(TINY, steps=3 * STEPS))
    whole = run_cell(cell, tmp_path / "whole", lambda steps: None)
    assert [point["step"] for point in whole["curve"]] == [STEPS, 2 * STEPS, 3 * STEPS]
    told: list[int] = []

    def killed(steps: int) -> None:
        told.append(steps)
        if sum(told) == 2 * STEPS + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, tmp_path / "killed", killed)
    told = []
    resumed = run_cell(cell, tmp_path / "killed", told.append)
    assert told[0] == 2 * STEPS
    assert sum(told) == 3 * STEPS
    same = ("val_accuracy", "val_loss", "train_accuracy", "curve", "images")
    assert {name: resumed[name] for name in same} == {name: whole[name] for name in same}
    assert resumed["cpu_seconds"] == whole["cpu_seconds"] == 3, "the time before the kill is lost, or counted twice"


def test_a_teacher_is_kept_and_teaches(tmp_path: Path) -> None:
    teacher = make_cell(TINY, "teacher", "teacher", 0.1, 999, cache=tmp_path)
    taught = run_cell(teacher, tmp_path / "cell", lambda steps: None)
    assert taught["steps"] == 2 * STEPS
    assert teacher.weights is not None
    assert teacher.weights.exists()
    student = run_cell(cell_of("netaug+kd", tmp_path), tmp_path / "cell", lambda steps: None)
    assert student["teacher_accuracy"] == taught["val_accuracy"]
    assert 5 < taught["parameters"] / student["parameters"] < 25


def test_what_is_learnt_is_taken_along_to_another_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Regime("transfer", steps=4, width=2, size=8, extra=(("data.val_samples", 64), ("data.batch_size", 16)))
    cell = cell_of("baseline", tmp_path, small)
    assert cell.then is not None
    assert (cell.then.data.name, cell.then.data.image_size, cell.then.model.kwargs["width"]) == ("digits", 8, 2)
    assert cell.then.optim.epochs == 20
    short = dataclasses.replace(cell, then=_with(cell.then, epochs=1))
    row = run_cell(short, tmp_path / "cell", lambda steps: None)
    assert row["images"] == 4 * 16
    assert row["before"]["curve"][-1]["step"] == 4
    assert row["curve"][-1]["step"] == STEPS
    assert [part["data"]["name"] for part in row["settings"]] == ["glyphs", "digits"]
    assert row["settings"][1]["model"]["weights"] is None, "a file that is gone is in the row"


def _with(config: Any, **optim: Any) -> Any:
    return config.model_copy(update={"optim": config.optim.model_copy(update=optim)})


def test_a_loss_that_is_no_longer_finite_is_a_result(tmp_path: Path) -> None:
    cell = make_cell(TINY, "baseline", "report", 1e12, 0, cache=tmp_path)
    row = attempt(cell, tmp_path / "cell", lambda steps: None)
    assert row is not None
    assert row["val_accuracy"] is None
    assert "no longer finite" in row["error"]
    assert row["settings"] == cell.settings


def test_a_cell_that_breaks_says_why(tmp_path: Path) -> None:
    cell = cell_of("baseline", tmp_path)
    model = cell.config.model.model_copy(update={"name": "nowhere.py:net"})
    broken = dataclasses.replace(cell, config=cell.config.model_copy(update={"model": model}))
    row = attempt(broken, tmp_path / "cell", lambda steps: None)
    assert row is not None
    assert "there is no file nowhere.py" in row["crashed"]


def test_shared_statistics_are_moved_by_both_passes() -> None:
    torch.manual_seed(0)
    plain: Any = netaug_fx.augment(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), 2)
    images = torch.randn(8, 1, 3, 3) + 5
    for shared in (False, True):
        if shared:
            share_statistics_(plain)
        mean, variance = plain[1].running_mean.clone(), plain[1].running_var.clone()
        with plain.augmented(plain.widest):
            plain(images)
        moved = not torch.equal(plain[1].running_mean, mean)
        assert moved is shared
    seen = plain[0](images)
    assert torch.allclose(plain[1].running_mean, 0.9 * mean + 0.1 * seen.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(plain[1].running_var, 0.9 * variance + 0.1 * seen.var((0, 2, 3)), atol=1e-6)


def test_statistics_are_re_estimated_before_each_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one batch to estimate from, they are that batch's."""
    monkeypatch.setattr(accuracy_cell, "CALIBRATION_IMAGES", 1)
    cell = cell_of("shared-statistics", tmp_path)
    arm = accuracy_cell._train(cell.config, tmp_path / "arm", cell.statistics, lambda steps: None)
    loader, _, _ = make_loaders(load_task(cell.config.data, 0), cell.config.data, 0)
    images, _ = next(iter(loader))
    seen = arm.net.stem.conv(images)  # type: ignore[union-attr, operator]
    norm: Any = arm.net.stem.norm  # type: ignore[union-attr]
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)


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
    digits = load_task(load_config(None, {"data.name": "digits"}).data, 0)
    assert len(digits.train) == DIGIT_IMAGES


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
    assert teacher.config.model.kwargs["width"] == 44
    assert "lr=0.1 seed=0" in cell_of("netaug", tmp_path, regime).name


@pytest.mark.parametrize(("side", "classes"), [(8, 10), (14, 62), (28, 62)])
def test_nets_run_at_every_side(side: int, classes: int) -> None:
    for width, depth in ((2, 1), (4, 2)):
        net = tiny(classes, width=width, depth=depth, side=side, expand=1 if depth == 2 else 3)
        assert net(torch.randn(2, 1, side, side)).shape == (2, classes)


def test_sizes_are_as_written() -> None:
    for (width, depth), size in {(3, 1): 1808, (8, 1): 6758, (20, 2): 85_182, (40, 2): 311_902}.items():
        assert sum(p.numel() for p in tiny(62, width=width, depth=depth).parameters()) == size


def test_dropblock_drops_in_training_alone() -> None:
    torch.manual_seed(0)
    nets: Sequence[tuple[nn.Module, int]] = [(tiny(5, width=4, dropblock=0.5), 14), (resnet18(5, dropblock=0.5), 32)]
    dropped: list[float] = []
    for net, side in nets:
        blocks = [module for module in net.modules() if isinstance(module, DropBlock)]
        assert len(blocks) == 2
        for block in blocks:
            block.register_forward_hook(lambda m, i, out: dropped.append(float((out == 0).float().mean())))
        dropped.clear()
        net(torch.randn(8, 1, side, side))
        assert min(dropped) > 0.2
        net.eval()
        images = torch.randn(8, 1, side, side)
        assert torch.equal(net(images), net(images))
    assert tiny(5, width=4, side=8, dropblock=0.1)(torch.randn(2, 1, 8, 8)).shape == (2, 5)


# -- what follows from rows --------------------------------------------------------------------------------------------


def made(method: str, accuracy: float | None, seed: int = 0, lr: float = 0.1, **more: Any) -> dict[str, Any]:
    role = "tuning" if seed >= FIRST_TUNING_SEED else "report"
    row = {"name": f"digits {method} lr={lr:g} seed={seed}", "task": "digits", "regime": "digits", "method": method}
    row |= {"role": role, "lr": lr, "seed": seed, "steps": 100, "val_accuracy": accuracy, "versions": {"code": "x"}}
    if accuracy is None:
        return row | {"error": "no longer finite"} | more
    curve = [{"step": 50, "val_accuracy": accuracy / 2}, {"step": 100, "val_accuracy": accuracy}]
    return row | {"train_accuracy": accuracy, "cpu_seconds": 10.0, "parameters": 1000, "curve": curve} | more


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


def test_one_seed_and_equal_results_are_not_tested() -> None:
    rows = [made("baseline", 0.5), made("netaug", 0.6), made("kd", 0.5, 1)]
    _, netaug, kd = lines(rows)
    assert (netaug.difference, netaug.interval, netaug.p) == (pytest.approx(10), None, None)
    assert kd.difference is None, "there is no baseline of that seed"
    assert "nan" not in tables(rows)


def test_methods_are_compared_at_their_own_best_rates() -> None:
    tuning = [made("baseline", 0.8 - abs(lr - 0.1), FIRST_TUNING_SEED, lr) for lr in GRID]
    tuning += [made("netaug", 0.9 if lr < 0.4 else None, FIRST_TUNING_SEED, lr) for lr in GRID[2:]]
    tuning += [made("netaug", 0.95, FIRST_TUNING_SEED, 0.025)]
    reported = [made("baseline", 0.7, lr=0.1), made("netaug", 0.75, lr=0.025), made("netaug", 0.1, lr=0.1)]
    _, netaug = lines([*tuning, *reported])
    assert (netaug.lr, netaug.tuned, netaug.difference) == (0.025, True, pytest.approx(5.0))
    shown = tables([*tuning, *reported])
    assert "| `netaug` | 0.025 (edge) |" in shown
    assert "| `netaug` | 95.00 |  | 90.00 | 90.00 | diverged |" in shown


def test_the_best_rate_is_found_before_seeds_are_reported(tmp_path: Path) -> None:
    request = Request(Regime("digits"), ("baseline", "netaug", "kd", "equal-time"), None, 2, 1, tmp_path)
    first = list(cells(request, []))
    assert [cell.role for cell in first] == ["teacher", *["tuning"] * 2 * len(GRID)]
    assert {cell.method for cell in first} == {"teacher", "baseline", "netaug"}, "kd waits for its teacher"
    assert {cell.seed for cell in first[1:]} == {FIRST_TUNING_SEED}
    rows = [made("baseline", 0.5 + (lr == 0.2) / 10, FIRST_TUNING_SEED, lr, cpu_seconds=10.0) for lr in GRID]
    rows += [made("netaug", 0.6 if lr == 0.05 else None, FIRST_TUNING_SEED, lr, cpu_seconds=40.0) for lr in GRID]
    rows.append(made("teacher", 0.9, role="teacher", name=first[0].name))
    second = list(cells(request, rows))
    reported = [(cell.method, cell.lr, cell.seed) for cell in second if cell.role == "report"]
    assert reported == [("baseline", 0.2, 0), ("netaug", 0.05, 0), ("baseline", 0.2, 1), ("netaug", 0.05, 1)]
    equal = [cell for cell in second if cell.method == "equal-time"]
    assert [cell.lr for cell in equal] == list(GRID)
    assert {cell.steps for cell in equal} == {run_length(4 * 3000, DIGIT_IMAGES, 64)[2]}
    assert {cell.role for cell in second if cell.method == "kd"} == {"tuning"}


def test_pictures_are_drawn(tmp_path: Path) -> None:
    rows = [
        made(method, 0.5 + seed / 50 + bonus, seed)
        for seed in range(3)
        for method, bonus in (("baseline", 0), ("netaug", 0.01 * seed))
    ]
    files = draw(rows, tmp_path)
    assert [file.name for file in files] == ["accuracy_digits_differences.png", "accuracy_digits_curves.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert draw([made("teacher", 0.5, role="teacher")], tmp_path) == []


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
    assert "no rows yet" in call("--task", "fonts", "--table", "--out", str(tmp_path / "none.jsonl"))[1]


def test_every_task_and_method_is_explained() -> None:
    code, shown = call("--list")
    assert code == 0
    assert all(name in shown for name in (*TASKS, *METHODS))
