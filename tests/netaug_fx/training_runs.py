"""Whole runs on a net of a few hundred weights: how tests make, change, break and compare them."""

import csv
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from netaug_fx.supernet import STATE_KEY
from netaug_fx.training import engine
from netaug_fx.training.arm import Arm, build_net
from netaug_fx.training.config import RunConfig, TrainConfig
from netaug_fx.training.data import Task
from netaug_fx.training.methods import method_of
from netaug_fx.training.run_folder import accelerator_for
from netaug_fx.training.teacher import load_teacher

# A class of the user's own, and a norm behind global pooling: one image alone has no statistics there.
NET = """
from torch import nn

class Net(nn.Sequential):
    pass

def make(num_classes=10, in_channels=1):
    return Net(
        nn.Conv2d(in_channels, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_classes),
    )
"""
EPOCHS = 3
STEPS = 11  # of an epoch: 1,438 training images in batches of 128
CHECKPOINTS = [f"checkpoints/{arm}.{kind}" for arm in ("baseline", "netaug") for kind in ("pt", "best.safetensors")]
FILES = ["metrics.csv", "config.yaml", "tiny.safetensors", "baseline.safetensors", "tiny.onnx"]


GENERATIONS, GENERATION_EPOCHS, GENERATION_STEPS = 3, 2, 11  # 359 training images in batches of 32
EVOLVED = ["metrics.csv", "config.yaml", "slim.safetensors", "dense.safetensors", "slim.onnx"]
Config = TypeVar("Config", bound=RunConfig)


def changed(config: Config, **settings: Any) -> Config:
    """The settings with some of them changed, by dotted name with a double underscore."""
    content = config.model_dump()
    for name, value in settings.items():
        *sections, field = name.split("__")
        target = content
        for section in sections:
            target = target[section]
        target[field] = value
    return type(config).model_validate(content)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def make_arm(config: TrainConfig, task: Task, folder: Path, name: Any = "netaug") -> Arm:
    net = build_net(config, task, name)
    teacher = load_teacher(config.distill, task, torch.device("cpu"))
    return Arm(
        name, config, task, accelerator_for(config), net, folder, method_of(net, config.netaug, config.distill), teacher
    )


def one_step(arm: Arm) -> Arm:
    """The first step of the first epoch."""
    next(engine._train_epoch(arm))
    return arm


def same_weights(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> bool:
    """Whether parameters and statistics agree; how many widths were drawn so far is not looked at."""
    other = b.state_dict()
    values = {name: value for name, value in a.state_dict().items() if name != STATE_KEY}
    return all(torch.allclose(value.float(), other[name].float(), atol=tolerance) for name, value in values.items())


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, change: Callable[[Tensor], Tensor]) -> None:
    """Do something within step ``number`` of the run, counted from 1 over both arms."""
    gradients, calls = engine._gradients, []

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        sums = gradients(*arguments)
        return change(sums) if len(calls) == number else sums

    monkeypatch.setattr(engine, "_gradients", counted)


def interrupt_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C within step ``number``."""

    def press(sums: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return sums

    at_step(monkeypatch, number, press)


def without_seconds(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    return report


def assert_same_results(folder: Path, other: Path, files: Sequence[str] = FILES) -> None:
    for name in files:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert without_seconds(folder) == without_seconds(other)


def environment() -> dict[str, str]:
    """For child processes: this project on the path, one thread each."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def checkpoint(folder: Path, arm: str) -> dict[str, Any]:
    """What an arm's checkpoint holds."""
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{arm}.pt", weights_only=True)
    return content
