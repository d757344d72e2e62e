"""Whole runs of generations: what is written, what is handed on, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.cli import main
from netaug_fx.errors import DataError, InputError, PlanError
from netaug_fx.training import evolve_run
from netaug_fx.training.arm import Arm
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import EvolveConfig, load_config
from tests.netaug_fx.training_runs import (
    EVOLVED,
    GENERATION_EPOCHS,
    GENERATION_STEPS,
    GENERATIONS,
    changed,
    rows_of,
    without_seconds,
)


def test_a_run_writes_all_its_files_and_nothing_else(evolved: Path) -> None:
    kept = ["checkpoints/control.pt", f"checkpoints/generation-{GENERATIONS}.pt", "checkpoints/finished.json"]
    present = {str(file.relative_to(evolved)) for file in evolved.rglob("*") if file.is_file()}
    assert present == {*EVOLVED, "report.json", "report.html", *kept}


def test_each_generation_has_a_schedule_of_its_own_and_the_control_as_many_steps(evolved: Path) -> None:
    rows = rows_of(evolved)
    names = [f"generation-{number}" for number in range(1, GENERATIONS + 1)]
    expected = [(name, epoch, epoch * GENERATION_STEPS) for name in names for epoch in range(1, GENERATION_EPOCHS + 1)]
    expected += [
        ("control", epoch, epoch * GENERATION_STEPS) for epoch in range(1, GENERATIONS * GENERATION_EPOCHS + 1)
    ]
    assert [(row["arm"], int(row["epoch"]), int(row["step"])) for row in rows] == expected
    rates = [float(row["lr"]) for row in rows if row["arm"] == "generation-2"]
    assert rates == [float(row["lr"]) for row in rows if row["arm"] == "generation-1"]
    assert rates[0] > 10 * rates[-1]
    assert all((row["slim_accuracy"] == "") == (row["arm"] == "control") for row in rows)


def test_the_report_says_what_came_of_the_generations(evolved: Path) -> None:
    report = json.loads((evolved / "report.json").read_text())
    rows = rows_of(evolved)
    last = [row for row in rows if row["arm"] == f"generation-{GENERATIONS}"][-1]
    assert report["generations"][-1]["dense"] == float(last["val_accuracy"])
    assert report["generations"][-1]["slim"] == float(last["slim_accuracy"])
    assert report["control"]["steps"] == GENERATIONS * GENERATION_EPOCHS * GENERATION_STEPS
    assert report["verification"]["passed"]
    assert report["macs"]["slim"]["macs"] < report["macs"]["dense"]["macs"]
    page = (evolved / "report.html").read_text()
    assert "one run of as many epochs" in page
    assert "<svg" in page
    assert f"{GENERATIONS} generations of {GENERATION_EPOCHS} epochs" in page


def test_the_weights_that_are_written_have_the_accuracies_that_are_told(
    evolved: Path, evolve_config: EvolveConfig
) -> None:
    task = evolve_run.prepare(evolve_config)
    supernet = evolve_run.split_net(evolve_config, task)
    images, labels = task.example(len(task.val)), task.val.labels
    for name, net in {"slim": netaug_fx.extract(supernet), "dense": netaug_fx.extract(supernet, dense=True)}.items():
        tensors, _ = load_weights(evolved / f"{name}.safetensors")
        net.load_state_dict(tensors)
        with torch.no_grad():
            right = (net.eval()(images).argmax(1) == labels).double().mean().item()
        assert right == pytest.approx(without_seconds(evolved)["generations"][-1][name], abs=1e-6)
        if name == "slim":
            session = onnxruntime.InferenceSession(evolved / "slim.onnx")
            (logits,) = session.run(None, {session.get_inputs()[0].name: images[:50].numpy()})
            with torch.no_grad():
                assert torch.allclose(torch.from_numpy(logits), net(images[:50]), atol=1e-4)


def test_generations_hand_the_fit_weights_on_and_draw_the_others_anew(
    evolve_config: EvolveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, seen = evolve_run.train_arm, []

    def watching(arm: Arm, *arguments: Any, **options: Any) -> None:
        states = [tensors(arm.net)]
        train(arm, *arguments, **options)
        seen.append((*states, tensors(arm.net)))

    monkeypatch.setattr(evolve_run, "train_arm", watching)
    evolve_run.start(changed(evolve_config, evolve__control=False), tmp_path / "run")
    assert len(seen) == GENERATIONS
    for (_, end), (begin, _) in itertools.pairwise(seen):
        extras = {key for key in end if "_netaug" in key}
        assert all(torch.equal(end[key], begin[key]) for key in end.keys() - extras)
        drawn = {key for key in extras if not torch.equal(end[key], begin[key])}
        assert "0.weight_netaug0" in drawn
        assert not any("running" in key for key in drawn)


def tensors(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if key != "netaug.draws"}


@pytest.mark.parametrize("loss", ["class_wise", "triplet"])
def test_other_losses_train(evolve_config: EvolveConfig, tmp_path: Path, loss: str) -> None:
    short = changed(evolve_config, evolve__loss=loss, evolve__generations=1, evolve__control=False, optim__epochs=4)
    rows = rows_of(evolve_run.start(short, tmp_path / loss))
    assert float(rows[-1]["train_accuracy"]) > float(rows[0]["train_accuracy"]) > 0
    plain = changed(short, evolve__loss="labels")
    assert rows_of(evolve_run.start(plain, tmp_path / "labels"))[0]["train_loss"] != rows[0]["train_loss"]


def test_weights_that_are_split_one_by_one_leave_one_net(evolve_config: EvolveConfig, tmp_path: Path) -> None:
    short = changed(evolve_config, evolve__method="wels", evolve__generations=2, evolve__control=False)
    folder = evolve_run.start(short, tmp_path / "wels")
    report = without_seconds(folder)
    assert list(report["macs"]) == ["dense"]
    assert report["verification"]["passed"]
    assert (folder / "dense.onnx").exists()
    assert not (folder / "slim.safetensors").exists()
    assert rows_of(folder)[0]["slim_accuracy"] == ""


def test_the_slim_nets_weights_can_be_verified_and_exported(
    evolved: Path, evolve_config: EvolveConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["verify", str(evolved / "slim.safetensors")],
        ["export", str(evolved / "slim.safetensors"), "--out"],
    ):
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
        ({"netaug.ratio": 3}, InputError, r"netaug-fx evolve has no setting 'netaug\.ratio' \(--ratio\)"),
        ({"evolve.pin": ["nowhere"]}, InputError, r"pin='nowhere' matches no module"),
        ({"evolve.pin": ["*"]}, PlanError, r"no width of Net can be cut"),
        ({"optim.accumulate": 1000}, DataError, r"do not make a step of 1000"),
        ({"data.batch_size": 1500}, DataError, r"1438 training images do not fill one batch"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    evolve_config: EvolveConfig, tmp_path: Path, override: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evolve_run.start(
            load_config(EvolveConfig, None, {"model.name": evolve_config.model.name, **override}), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_settings_own_default_holds_beside_others_of_its_section() -> None:
    config = load_config(EvolveConfig, None, {"optim.lr": 0.3, "data.name": "glyphs"})
    assert (config.optim.lr, config.optim.epochs, config.optim.weight_decay) == (0.3, 20, 1e-4)
    assert (config.data.name, config.data.batch_size) == ("glyphs", 32)
