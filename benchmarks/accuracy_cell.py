"""One cell of accuracy: trained by the project's own engine, in a process of its own, and described in one row."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import netaug_fx
from benchmarks.accuracy_methods import POINTS
from benchmarks.accuracy_plan import Cell
from benchmarks.rows import ROOT, Row
from netaug_fx.atomic import write_text
from netaug_fx.elastic import STATE
from netaug_fx.errors import RunError
from netaug_fx.passes.layout import positions
from netaug_fx.training.arm import Arm, build_net
from netaug_fx.training.checkpoint import load_weights, save_weights
from netaug_fx.training.config import TrainConfig
from netaug_fx.training.data import load_task, make_loaders
from netaug_fx.training.engine import train_arm
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.methods import method_of
from netaug_fx.training.progress import Silent
from netaug_fx.training.run_folder import weights_metadata
from netaug_fx.training.teacher import load_teacher

CALIBRATION_IMAGES = 4096
SAVE_SECONDS = 60.0
TELL_STEPS = 20

Tell = Callable[[int], None]
"""Told how many steps were done since it was last called."""


def work(sending: Connection, cell: Cell, folder: Path) -> None:
    """Runs in a child process; sends numbers of steps, then what `attempt` gives."""
    os.setsid()  # Ctrl-C goes to the parent, which asks this process to stop and waits for its checkpoint
    os.chdir(ROOT)
    torch.set_num_threads(1)
    sending.send(attempt(cell, folder, sending.send))


def attempt(cell: Cell, folder: Path, tell: Tell) -> Row | None:
    """One row, also where the loss diverged or the cell broke; None where it was interrupted."""
    try:
        return run_cell(cell, folder, tell)
    except Interrupted:
        return None
    except RunError as error:  # the loss is no longer finite: a result, too
        return {**_facts(cell), "error": str(error).split(". ")[0], "val_accuracy": None}
    except Exception as error:  # whatever broke must not end the other cells; it is shown, and not kept
        return {"name": cell.name, "crashed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def run_cell(cell: Cell, folder: Path, tell: Tell) -> Row:
    """Trains a cell to its end, from where ``folder`` has got to.

    Args:
        folder: Holds checkpoints while the cell is under way; removed at the end.
        tell: Is told of the progress.

    Raises:
        RunError: the loss is no longer finite, or a signal came.
    """
    started = time.monotonic()
    arm = _train(cell.config, folder / "first", cell.statistics, tell)
    row = {**_facts(cell), **_measured(arm)}
    if cell.config.distill.teacher_weights is not None:
        _, facts = load_weights(Path(cell.config.distill.teacher_weights))
        row["teacher_accuracy"] = facts["val_accuracy"]
    if cell.weights is not None:
        facts = weights_metadata(cell.config, arm.task) | {"val_accuracy": row["val_accuracy"]}
        cell.weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(arm.plain(), cell.weights, facts)
    if cell.then is not None:
        weights = folder / "first.safetensors"
        save_weights(arm.plain(), weights, weights_metadata(cell.config, arm.task))
        start = cell.then.model.model_copy(update={"weights": str(weights)})
        tuned = _train(cell.then.model_copy(update={"model": start}), folder / "then", "own", tell)
        row |= {"before": {name: row[name] for name in ("val_accuracy", "val_loss", "train_accuracy", "curve")}}
        later = _measured(tuned)
        row |= {name: later[name] for name in ("val_accuracy", "val_loss", "train_accuracy", "curve")}
    shutil.rmtree(folder)
    return row | {"wall_seconds": round(time.monotonic() - started, 1)}


def _facts(cell: Cell) -> Row:
    regime = cell.regime
    return {
        "name": cell.name,
        "task": regime.task,
        "regime": regime.label,
        "method": cell.method,
        "role": cell.role,
        "lr": cell.lr,
        "seed": cell.seed,
        "steps": cell.steps,
        "statistics": cell.statistics,
        "settings": cell.settings,
    }


def _measured(arm: CellArm) -> Row:
    """What the arm came to; the curve has about as many points as an endless run has epochs."""
    optim, history = arm.config.optim, arm.history
    stride = -(-len(history) // POINTS)
    keys = ("step", "train_loss", "train_accuracy", "augmented_loss", "val_loss", "val_accuracy")
    points = [{key: point[key] for key in keys if key in point} for point in reversed(history[::-1][::stride])]
    last = history[-1]
    return {
        "steps": arm.step,
        "images": arm.step * arm.config.data.batch_size * optim.accumulate,
        "parameters": sum(parameter.numel() for parameter in arm.plain().parameters()),
        "val_accuracy": last["val_accuracy"],
        "val_loss": last["val_loss"],
        "train_accuracy": last["train_accuracy"],
        "cpu_seconds": round(arm.clock.training, 2),
        "cpu_seconds_looking": round(arm.clock.looking, 2),
        "curve": points,
    }


def _train(config: TrainConfig, folder: Path, statistics: str, tell: Tell) -> CellArm:
    """Trains the one arm that the settings name, as a run of `netaug-fx train` would."""
    (name,) = config.active_arms
    folder.mkdir(parents=True, exist_ok=True)
    task = load_task(config.data, config.seed)
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=config.optim.precision)
    teacher = load_teacher(config.distill, task, accelerator.device)
    net = build_net(config, task, name)
    if statistics != "own":
        share_statistics_(net)
    arm = CellArm(name, config, task, accelerator, net, folder, method_of(net, config.netaug, config.distill), teacher)
    arm.calibrates = statistics == "calibrated"
    arm.restore()
    progress = _Teller(tell)
    with StopRequest() as stop:
        train_arm(arm, progress, stop, on_epoch=arm.looked)
    progress.flush()
    return arm


@dataclass
class _Clock:
    """CPU seconds of this process so far, apart for training and for looking at validation images."""

    training: float = 0.0
    looking: float = 0.0
    since: float = 0.0

    def start(self) -> None:
        self.since = time.process_time()

    def count(self, what: str) -> None:
        """Adds the time since the last call to ``training`` or ``looking``."""
        now = time.process_time()
        setattr(self, what, getattr(self, what) + now - self.since)
        self.since = now


class CellArm(Arm):
    """An arm that measures its CPU time, and does not write a checkpoint after epochs of a second.

    Attributes:
        calibrates: Whether norm statistics are re-estimated before each look at validation images.
    """

    calibrates = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.clock, self.saved = _Clock(), time.monotonic()

    @property
    def judged(self) -> nn.Module:
        """What is validated; asked for once an epoch, when training has paused."""
        self.clock.count("training")
        if self.calibrates:
            loader, order, _ = make_loaders(self.task, self.config.data, self.config.seed)
            order.epoch = self.epoch
            batches = itertools.islice(loader, max(1, CALIBRATION_IMAGES // self.config.data.batch_size))
            netaug_fx.calibrate_(self.net, batches)
        return super().judged

    def looked(self) -> None:
        """Validation of an epoch is over."""
        self.clock.count("looking")

    def save(self) -> None:
        """Write the checkpoint and the CPU time with it, once a minute, and always where training stops half-way."""
        if self.batch == 0 and time.monotonic() - self.saved < SAVE_SECONDS:
            return
        if self.batch:
            self.clock.count("training")
        times = {str(self.step): [self.clock.training, self.clock.looking]}
        # Before and beside the former one: whichever checkpoint a kill leaves finds its time.
        write_text(self._times, json.dumps(self._known_times() | times))
        super().save()
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one, and from its CPU time."""
        super().restore()
        if self.step:
            self.clock.training, self.clock.looking = self._known_times()[str(self.step)]
        self.clock.start()

    @property
    def _times(self) -> Path:
        return self.folder / "cpu.json"

    def _known_times(self) -> dict[str, list[float]]:
        known: dict[str, list[float]] = json.loads(self._times.read_text()) if self._times.exists() else {}
        return known


class _Teller(Silent):
    """Tells of steps, a number of them at a time."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.steps = tell, 0

    def start_arm(self, arm: str, *, total: int, done: int) -> None:
        self.tell(done)

    def advance(self) -> None:
        self.steps += 1
        if self.steps >= TELL_STEPS:
            self.flush()

    def flush(self) -> None:
        self.tell(self.steps)
        self.steps = 0


def share_statistics_(supernet: nn.Module) -> None:
    """Lets augmented passes update the target's running statistics too, in place, as the paper's authors' code does."""
    for module in supernet.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_update_statistics)


@torch.no_grad()
def _update_statistics(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Moves the running statistics of the original's channels to those of an augmented batch ``[n, channels, ...]``."""
    state = module.__dict__.get(STATE)
    if state is None or state.active.widths is None or not module.training:
        return
    (images,) = inputs
    places = positions(state.tensors["running_mean"].layouts[0], None, state.active.widths).to(images.device)
    variance, mean = torch.var_mean(images, [0, *range(2, images.dim())])
    momentum = module.__dict__["momentum"]
    for name, value in (("running_mean", mean), ("running_var", variance)):
        buffer = module._buffers[name]
        assert buffer is not None
        buffer.lerp_(value[places], momentum)
