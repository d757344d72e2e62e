"""``netaug-fx train --task detect``: train the arms, extract the tiny detector, export it, verify it, report.

The run folder holds what that of ``train`` does, and ``tiny.decoded.onnx``, the tiny detector with decoding in the
graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from netaug_fx.errors import CheckError, PlanError, TraceError
from netaug_fx.training.arm import Arm, augmented
from netaug_fx.training.config import ArmName
from netaug_fx.training.detection.detect_config import DetectConfig
from netaug_fx.training.detection.detect_report import make_report, verdict, write_report
from netaug_fx.training.detection.detection_task import DetectionTask
from netaug_fx.training.detection.detector_loading import check_detector, first_detector
from netaug_fx.training.detection.loaders import make_loaders
from netaug_fx.training.detection.metrics import need_coco
from netaug_fx.training.detection.objective import Boxes
from netaug_fx.training.detection.sources import load_detection_task
from netaug_fx.training.facts import no_onnx_line
from netaug_fx.training.methods import method_of
from netaug_fx.training.run_folder import check_request, new_run, old_run
from netaug_fx.training.tracking import check_tracking
from netaug_fx.training.work import Delivered, Work

METRICS = (
    "arm",
    "epoch",
    "step",
    "lr",
    "train_loss",
    "augmented_loss",
    "val_map",
    "val_map_50",
    "val_map_75",
)


def start(config: DetectConfig, folder: Path | None = None) -> Path:
    """Train in a new folder and return it.

    Raises:
        RunError: the folder exists, cannot be written, the loss diverged, or the run was interrupted.
        InputError: model or settings cannot be used, or what judges detections is missing.
        DataError: the images or their annotations cannot be used.
        ExportError: the opset cannot be had.
    """
    return Work(DETECT, *new_run(config, folder, prepare)).run()


def resume(folder: Path) -> Path:
    """Continue a run that was interrupted or killed; a finished one only gets its last files written again.

    Raises:
        RunError: the folder is no run of ``netaug-fx train --task detect``.
        CheckpointError: a checkpoint in it cannot be used.
    """
    return Work(DETECT, *old_run(folder, DetectConfig, prepare)).run()


def prepare(config: DetectConfig) -> DetectionTask:
    """Load the images, try the detector on two of them, and where an opset is asked for, try to export it.

    Raises:
        InputError: the detector does not exist, cannot take the images, or gives neither losses nor detections; a
            setting of the augmentation does not fit it; or what judges detections is missing.
        DataError: the images or their annotations cannot be used.
        ExportError: the opset cannot be had; found here, before hours of training.
    """
    check_tracking(config.tracking)
    need_coco()
    task = load_detection_task(config.data, config.seed)
    net = DETECT.net(config, task, "baseline")
    check_detector(net, task, config.detect, config.model.name)
    if "netaug" in config.active_arms:
        DETECT.net(config, task, "netaug")
    check_request(config, task, net, len(make_loaders(task, config.data, config.seed)[0]))
    return task


class Detect:
    """What runs that find objects in images decide."""

    metrics: tuple[str, ...] = METRICS

    def net(self, config: DetectConfig, task: DetectionTask, arm: ArmName) -> nn.Module:
        """The net of an arm with its first weights."""
        net = first_detector(config, task)
        if arm == "baseline":
            return net
        try:
            return augmented(net, config.netaug, task, config.seed)
        except (CheckError, PlanError, TraceError) as error:
            raise type(error)(
                f"{error}\nA detector that chooses boxes within its forward, by score or by suppression, has outputs "
                "of no fixed shape, and one that asks for targets in training mode cannot be looked into: let it give "
                "predictions and choose in a method `detect` (docs/detection.md), or train it with --arms baseline"
            ) from error

    def arm(
        self, name: ArmName, config: DetectConfig, task: DetectionTask, accelerator: Any, net: nn.Module, folder: Path
    ) -> Arm:
        """An arm around that net, not begun."""
        objective = Boxes(config.detect)
        method = method_of(net, config.netaug)
        return Arm(name, config, task, accelerator, net, folder, method, objective=objective)

    def report(self, config: DetectConfig, task: DetectionTask, folder: Path, delivered: Delivered) -> dict[str, Any]:
        """Writes ``tiny.decoded.onnx``, ``report.json`` and ``report.html``; returns what ``report.json`` holds."""
        facts = make_report(config, task, folder, delivered)
        write_report(facts, config, task, delivered, folder)
        return facts

    def summary(self, facts: Mapping[str, Any], folder: Path) -> str:
        """What a run came to, in a few lines for the terminal."""
        arms = ", ".join(f"{name} {arm['map'] or 0:.1%}" for name, arm in facts["arms"].items())
        tiny = facts["macs"]["tiny"]
        lines = [
            f"mean average precision: {arms}",
            verdict(facts["comparison"]),
            f"tiny net: {tiny['macs']:,} MACs, {tiny['params']:,} parameters; verified against the original: "
            f"{'yes' if facts['verification']['passed'] else 'NO, see the report'}",
            no_onnx_line(facts),
            f"report: {folder / 'report.html'}",
        ]
        return "\n".join(line for line in lines if line)


DETECT = Detect()
