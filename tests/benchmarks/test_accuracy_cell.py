"""Accuracy's cells: they resume, hand over what they learnt, and say what broke; its nets are of the sizes written."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from benchmarks import accuracy_cell
from benchmarks.accuracy_cell import attempt, run_cell, share_statistics_
from benchmarks.accuracy_methods import FEW_DIGITS
from benchmarks.accuracy_nets import DropBlock, resnet18, tiny
from benchmarks.accuracy_plan import Cell, Regime, make_cell
from benchmarks.rows import ROOT
from netaug_fx.training.data import load_task, make_loaders

TINY = Regime("digits", steps=22, width=2)
STEPS = 22  # of an epoch of digits


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings name the nets' file from the root, where cells run."""
    monkeypatch.chdir(ROOT)


def cell_of(method: str, folder: Path, regime: Regime = TINY) -> Cell:
    return make_cell(regime, method, "report", 0.1, 0, cache=folder)


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
    assert cell.then.optim.epochs == 40
    short = dataclasses.replace(cell, then=_with(cell.then, epochs=1))
    row = run_cell(short, tmp_path / "cell", lambda steps: None)
    assert row["images"] == 4 * 16
    assert row["before"]["curve"][-1]["step"] == 4
    assert row["curve"][-1]["step"] == FEW_DIGITS // 32
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


# -- nets --------------------------------------------------------------------------------------------------------------


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
