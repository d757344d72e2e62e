"""The whole main job: train the arms, extract the tiny net, export it, verify it, and write the report.

A run folder holds::

    config.yaml           the resolved settings
    metrics.csv           one row for each arm and epoch
    checkpoints/ARM.pt    to resume from
    checkpoints/ARM.best.safetensors  the tiny net at its best epoch
    tiny.safetensors      the tiny net's weights (of the arm ``netaug`` where it was trained)
    baseline.safetensors  the baseline's weights
    tiny.onnx             the tiny net for other runtimes
    report.json           what the page shows, for programs
    report.html           one page that needs no network
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netaug_fx.training.arm import Arm, build_net
from netaug_fx.training.config import ArmName, TrainConfig
from netaug_fx.training.data import Task, load_task, make_loaders
from netaug_fx.training.facts import no_onnx_line
from netaug_fx.training.methods import method_of
from netaug_fx.training.model_loading import check_outputs
from netaug_fx.training.report import ArmResult, make_report, verdict, write_report
from netaug_fx.training.run_folder import check_request, new_run, old_run
from netaug_fx.training.teacher import load_teacher
from netaug_fx.training.tracking import check_tracking
from netaug_fx.training.work import Delivered, Work

METRICS = (
    "arm",
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "augmented_loss",
    "val_loss",
    "val_accuracy",
)


def start(config: TrainConfig, folder: Path | None = None) -> Path:
    """Train in a new folder and return it.

    Raises:
        RunError: the folder exists, cannot be written, the loss diverged, or the run was interrupted.
        InputError: model or settings cannot be used.
        DataError: the images cannot be used.
        ExportError: the opset cannot be had.
    """
    return Work(CLASSIFY, *new_run(config, folder, prepare)).run()


def resume(folder: Path) -> Path:
    """Continue a run that was interrupted or killed; a finished one only gets its last files written again.

    Raises:
        RunError: the folder is no run of ``netaug-fx train``.
        CheckpointError: a checkpoint in it cannot be used.
    """
    return Work(CLASSIFY, *old_run(folder, TrainConfig, prepare)).run()


def prepare(config: TrainConfig) -> Task:
    """Load the images, try the net on two of them, and where an opset is asked for, try to export it.

    Raises:
        InputError: the net does not exist, cannot take the images, or its outputs do not match the classes; or a
            setting of the augmentation does not fit it.
        DataError: the images cannot be used.
        ExportError: the opset cannot be had; found here, before hours of training.
    """
    check_tracking(config.tracking)
    task = load_task(config.data, config.seed)
    net = build_net(config, task, "baseline")
    check_outputs(net, task.example(), len(task.classes), config.model.name)
    if "netaug" in config.active_arms:
        build_net(config, task, "netaug")
    load_teacher(config.distill, task, torch.device("cpu"))
    check_request(config, task, net, len(make_loaders(task, config.data, config.seed)[0]))
    return task


class Classify:
    """What runs of ``netaug-fx train`` that tell classes of images apart decide."""

    metrics: tuple[str, ...] = METRICS

    def net(self, config: TrainConfig, task: Task, arm: ArmName) -> nn.Module:
        """The net of an arm with its first weights."""
        return build_net(config, task, arm)

    def arm(
        self, name: ArmName, config: TrainConfig, task: Task, accelerator: Any, net: nn.Module, folder: Path
    ) -> Arm:
        """An arm around that net, not begun."""
        teacher = load_teacher(config.distill, task, accelerator.device)
        return Arm(name, config, task, accelerator, net, folder, method_of(net, config.netaug, config.distill), teacher)

    def report(self, config: TrainConfig, task: Task, folder: Path, delivered: Delivered) -> dict[str, Any]:
        """Writes ``report.json`` and ``report.html``; returns what the former holds."""
        facts = make_report(
            config,
            task,
            {arm.name: ArmResult(arm.history, arm.step, arm.seconds) for arm in delivered.arms},
            groups=delivered.groups,
            pins=delivered.pins,
            macs=delivered.macs,
            verification=delivered.verification,
            no_onnx=delivered.no_onnx,
        )
        write_report(facts, delivered.original, folder, groups=delivered.groups, pins=delivered.pins)
        return facts

    def summary(self, facts: Mapping[str, Any], folder: Path) -> str:
        """What a run came to, in a few lines for the terminal."""
        arms = ", ".join(f"{name} {arm['val_accuracy']:.1%}" for name, arm in facts["arms"].items())
        passed = facts["verification"]["passed"]
        lines = [
            f"validation accuracy: {arms}",
            verdict(facts["comparison"], facts["data"]["val_images"]),
            f"tiny net: {facts['macs']['tiny']['macs']:,} MACs, {facts['macs']['tiny']['params']:,} parameters; "
            f"verified against the original: {'yes' if passed else 'NO, see the report'}",
            no_onnx_line(facts),
            f"report: {folder / 'report.html'}",
        ]
        return "\n".join(line for line in lines if line)


CLASSIFY = Classify()
