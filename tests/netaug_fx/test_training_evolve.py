"""Whole runs of generations: what is written, what is handed on, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.cli import main
from netaug_fx.errors import CheckpointError, DataError, InputError, PlanError, RunError
from netaug_fx.training import evolve_run
from netaug_fx.training.arm import Arm
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import EvolveConfig, TrainConfig, load_config
from netaug_fx.training.interrupt import Interrupted
from tests.netaug_fx.training_runs import at_step, rows_of

GENERATIONS, EPOCHS, STEPS = 3, 2, 11  # 359 training images in batches of 32
FILES = ["metrics.csv", "config.yaml", "slim.safetensors", "dense.safetensors", "slim.onnx"]


def changed(config: EvolveConfig, **settings: Any) -> EvolveConfig:
    """The settings with some of them changed, by dotted name with a double underscore."""
    content = config.model_dump()
    for name, value in settings.items():
        section, field = name.split("__")
        content[section][field] = value
    return EvolveConfig.model_validate(content)


@pytest.fixture(scope="module")
def settings(config: TrainConfig) -> EvolveConfig:
    """The small net of all training tests, in few and short generations."""
    short = {"model.name": config.model.name, "optim.epochs": EPOCHS, "optim.warmup_epochs": 0.5}
    return load_config(EvolveConfig, None, {**short, "evolve.generations": GENERATIONS, "data.val_fraction": 0.8})


@pytest.fixture(scope="module")
def whole(settings: EvolveConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evolve_run.start(settings, tmp_path_factory.mktemp("evolve") / "whole")


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    return report


def assert_same_results(folder: Path, other: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert report_of(folder) == report_of(other)


def test_a_run_writes_all_its_files_and_nothing_else(whole: Path) -> None:
    kept = ["checkpoints/control.pt", f"checkpoints/generation-{GENERATIONS}.pt", "checkpoints/finished.json"]
    present = {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()}
    assert present == {*FILES, "report.json", "report.html", *kept}


def test_each_generation_has_a_schedule_of_its_own_and_the_control_as_many_steps(whole: Path) -> None:
    rows = rows_of(whole)
    names = [f"generation-{number}" for number in range(1, GENERATIONS + 1)]
    expected = [(name, epoch, epoch * STEPS) for name in names for epoch in range(1, EPOCHS + 1)]
    expected += [("control", epoch, epoch * STEPS) for epoch in range(1, GENERATIONS * EPOCHS + 1)]
    assert [(row["arm"], int(row["epoch"]), int(row["step"])) for row in rows] == expected
    rates = [float(row["lr"]) for row in rows if row["arm"] == "generation-2"]
    assert rates == [float(row["lr"]) for row in rows if row["arm"] == "generation-1"]
    assert rates[0] > 10 * rates[-1]
    assert all((row["slim_accuracy"] == "") == (row["arm"] == "control") for row in rows)


def test_the_report_says_what_came_of_the_generations(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    rows = rows_of(whole)
    last = [row for row in rows if row["arm"] == f"generation-{GENERATIONS}"][-1]
    assert report["generations"][-1]["dense"] == float(last["val_accuracy"])
    assert report["generations"][-1]["slim"] == float(last["slim_accuracy"])
    assert report["control"]["steps"] == GENERATIONS * EPOCHS * STEPS
    assert report["verification"]["passed"]
    assert report["macs"]["slim"]["macs"] < report["macs"]["dense"]["macs"]
    page = (whole / "report.html").read_text()
    assert "one run of as many epochs" in page
    assert "<svg" in page
    assert f"{GENERATIONS} generations of {EPOCHS} epochs" in page


def test_the_weights_that_are_written_have_the_accuracies_that_are_told(whole: Path, settings: EvolveConfig) -> None:
    task = evolve_run.prepare(settings)
    supernet = evolve_run.split_net(settings, task)
    images, labels = task.example(len(task.val)), task.val.labels
    for name, net in {"slim": netaug_fx.extract(supernet), "dense": netaug_fx.extract(supernet, dense=True)}.items():
        tensors, _ = load_weights(whole / f"{name}.safetensors")
        net.load_state_dict(tensors)
        with torch.no_grad():
            right = (net.eval()(images).argmax(1) == labels).double().mean().item()
        assert right == pytest.approx(report_of(whole)["generations"][-1][name], abs=1e-6)
        if name == "slim":
            session = onnxruntime.InferenceSession(whole / "slim.onnx")
            (logits,) = session.run(None, {session.get_inputs()[0].name: images[:50].numpy()})
            with torch.no_grad():
                assert torch.allclose(torch.from_numpy(logits), net(images[:50]), atol=1e-4)


def test_generations_hand_the_fit_weights_on_and_draw_the_others_anew(
    settings: EvolveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, seen = evolve_run.train_arm, []

    def watching(arm: Arm, *arguments: Any, **options: Any) -> None:
        states = [tensors(arm.net)]
        train(arm, *arguments, **options)
        seen.append((*states, tensors(arm.net)))

    monkeypatch.setattr(evolve_run, "train_arm", watching)
    evolve_run.start(changed(settings, evolve__control=False), tmp_path / "run")
    assert len(seen) == GENERATIONS
    for (_, end), (begin, _) in itertools.pairwise(seen):
        extras = {key for key in end if "_netaug" in key}
        assert all(torch.equal(end[key], begin[key]) for key in end.keys() - extras)
        drawn = {key for key in extras if not torch.equal(end[key], begin[key])}
        assert "0.weight_netaug0" in drawn
        assert not any("running" in key for key in drawn)


def tensors(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if key != "netaug.draws"}


# Of 66 steps: in the first generation, in the second one, at its end, and in the control.
@pytest.mark.parametrize("step", [5, STEPS * EPOCHS + 3, STEPS * EPOCHS * 2, STEPS * EPOCHS * GENERATIONS + 4])
def test_an_interrupted_run_resumes_to_the_same_result(
    whole: Path, settings: EvolveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "run"

    def interrupt(sums: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return sums

    with monkeypatch.context() as patched:
        at_step(patched, step, interrupt)
        with pytest.raises(Interrupted, match="netaug-fx evolve --resume"):
            evolve_run.start(settings, folder)
    assert not (folder / "report.json").exists()
    evolve_run.resume(folder)
    assert_same_results(whole, folder)


def test_a_finished_run_writes_its_last_files_again(whole: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(whole, copied)
    for name in (*FILES[2:], "report.json", "report.html", "metrics.csv"):
        (copied / name).unlink()
    evolve_run.resume(copied)
    assert_same_results(whole, copied)


@pytest.mark.parametrize("loss", ["class_wise", "triplet"])
def test_other_losses_train(settings: EvolveConfig, tmp_path: Path, loss: str) -> None:
    short = changed(settings, evolve__loss=loss, evolve__generations=1, evolve__control=False, optim__epochs=4)
    rows = rows_of(evolve_run.start(short, tmp_path / loss))
    assert float(rows[-1]["train_accuracy"]) > float(rows[0]["train_accuracy"]) > 0
    plain = changed(short, evolve__loss="labels")
    assert rows_of(evolve_run.start(plain, tmp_path / "labels"))[0]["train_loss"] != rows[0]["train_loss"]


def test_weights_that_are_split_one_by_one_leave_one_net(settings: EvolveConfig, tmp_path: Path) -> None:
    short = changed(settings, evolve__method="wels", evolve__generations=2, evolve__control=False)
    folder = evolve_run.start(short, tmp_path / "wels")
    report = report_of(folder)
    assert list(report["macs"]) == ["dense"]
    assert report["verification"]["passed"]
    assert (folder / "dense.onnx").exists()
    assert not (folder / "slim.safetensors").exists()
    assert rows_of(folder)[0]["slim_accuracy"] == ""


def test_the_slim_nets_weights_can_be_verified_and_exported(
    whole: Path, settings: EvolveConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["verify", str(whole / "slim.safetensors")], ["export", str(whole / "slim.safetensors"), "--out"]):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *([str(tmp_path / "slim.onnx")] if words[0] == "export" else [])])
        assert stopped.value.code in (0, None), capsys.readouterr().err
    assert "verified" in capsys.readouterr().out
    assert (tmp_path / "slim.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ({"evolve.keep": 0.0}, InputError, r"'evolve\.keep' \(--keep\).*greater than 0"),
        ({"evolve.keep": 1.5}, InputError, r"'evolve\.keep' \(--keep\).*less than or equal to 1"),
        ({"evolve.generations": 0}, InputError, r"'evolve\.generations' \(--generations\)"),
        ({"optim.average": 0.99}, InputError, r"optim\.average is for netaug-fx train"),
        ({"optim.mixup": 0.2, "evolve.loss": "triplet"}, InputError, r"mixup leaves images of no one class"),
        ({"netaug.ratio": 3}, InputError, r"unknown setting 'netaug"),
        ({"evolve.pin": ["nowhere"]}, InputError, r"pin='nowhere' matches no module"),
        ({"evolve.pin": ["*"]}, PlanError, r"no width of Net can be cut"),
        ({"data.batch_size": 1500}, DataError, r"1438 training images do not fill one batch"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    settings: EvolveConfig, tmp_path: Path, override: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evolve_run.start(
            load_config(EvolveConfig, None, {"model.name": settings.model.name, **override}), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_settings_own_default_holds_beside_others_of_its_section() -> None:
    config = load_config(EvolveConfig, None, {"optim.lr": 0.3, "data.name": "glyphs"})
    assert (config.optim.lr, config.optim.epochs, config.optim.weight_decay) == (0.3, 20, 1e-4)
    assert (config.data.name, config.data.batch_size) == ("glyphs", 32)


def test_a_run_of_another_kind_or_a_broken_one_is_not_resumed(whole: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        evolve_run.resume(tmp_path)
    with pytest.raises(InputError, match="unknown setting"):
        evolve_run.resume(finished)
    copied = tmp_path / "copy"
    shutil.copytree(whole, copied)
    (copied / "checkpoints" / "finished.json").write_text("[{")
    with pytest.raises(CheckpointError, match=r"finished\.json cannot be read"):
        evolve_run.resume(copied)
