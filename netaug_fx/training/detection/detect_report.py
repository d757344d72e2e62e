"""``report.json`` and ``report.html`` of a run that finds objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netaug_fx.models.detection import Detector
from netaug_fx.passes.report import Check
from netaug_fx.training.detection.box_pictures import draw_boxes
from netaug_fx.training.detection.detect_config import DetectConfig
from netaug_fx.training.detection.detection_task import DetectionTask
from netaug_fx.training.detection.judging import as_rows, check_files, export_decoded, found_by
from netaug_fx.training.detection.metrics import SIZES, average_precision
from netaug_fx.training.facts import run_facts, write_report_files
from netaug_fx.training.group_picture import draw
from netaug_fx.training.plots import NAMES, loss_curves, precision_curves
from netaug_fx.training.schedule import phase_change
from netaug_fx.training.work import Delivered

DECODED = "tiny.decoded.onnx"


def make_report(config: DetectConfig, task: DetectionTask, folder: Path, delivered: Delivered) -> dict[str, Any]:
    """Everything the page shows, as JSON values; writes the file with decoding in the graph, and tries both."""
    everything = range(len(task.val))
    arms = {
        arm.name: {
            "steps": arm.step,
            **average_precision(found_by(delivered.nets[arm.name], task, config.detect, everything), task.classes),
            "best_val_map": max(row["val_map"] for row in arm.history),
            "history": [dict(row) for row in arm.history],
        }
        for arm in delivered.arms
    }
    no_decoded = export_decoded(delivered.tiny, folder / DECODED, task.example(1), config.opset)
    files = {"onnx on images": folder / "tiny.onnx", "decoded onnx on images": folder / DECODED}
    checks = check_files(delivered.tiny, {name: file for name, file in files.items() if file.exists()}, task)
    if isinstance(delivered.tiny, Detector) and no_decoded is not None:
        checks.append(Check("decoded onnx on images", False, f"there is no file: {no_decoded}"))
    verification = dict(delivered.verification)
    verification["checks"] = [*verification["checks"], *as_rows(checks)]
    verification["passed"] = verification["passed"] and all(check.passed for check in checks)
    return {
        **run_facts(config, task),
        "task": "detect",
        "notes": task.notes(),
        "arms": arms,
        "comparison": compare(arms),
        "groups": [dataclasses.asdict(group) for group in delivered.groups],
        "pins": [dataclasses.asdict(pin) for pin in delivered.pins],
        "macs": dict(delivered.macs),
        "verification": verification,
        "no_onnx": delivered.no_onnx,
        "no_decoded_onnx": no_decoded,
        "seconds": {arm.name: round(arm.seconds, 1) for arm in delivered.arms},
    }


def compare(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    """The difference between the arms; None where there is one."""
    if not {"baseline", "netaug"} <= set(arms):
        return None
    return {name: (arms["netaug"][name] or 0) - (arms["baseline"][name] or 0) for name in ("map", "map_50", "map_75")}


def verdict(comparison: Mapping[str, float] | None) -> str:
    """The comparison in words, whichever arm is ahead."""
    if comparison is None:
        return "One arm was trained, so there is nothing to compare."
    gain = comparison["map"] * 100
    if abs(gain) < 0.005:
        return "Both arms end with the same mean average precision. One seed does not rank them."
    ahead, behind = ("NetAug", "the baseline") if gain > 0 else ("The baseline", "NetAug")
    return (
        f"{ahead} ends {abs(gain):.2f} points of mean average precision above {behind} "
        f"({comparison['map_50'] * 100:+.2f} points for NetAug at an overlap of 0.5). One seed does not rank them: "
        "benchmarks/detection.py compares several."
    )


def write_report(
    facts: Mapping[str, Any], config: DetectConfig, task: DetectionTask, delivered: Delivered, folder: Path
) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``.

    Raises:
        RunError: a file cannot be written.
    """
    history = {name: arm["history"] for name, arm in facts["arms"].items()}
    change = phase_change(config.optim.epochs, config.netaug.phase_two) if delivered.groups else None
    write_report_files(
        facts,
        folder,
        "detect.html.j2",
        verdict=verdict(facts["comparison"]),
        names=NAMES,
        sizes=SIZES,
        precision_plot=precision_curves(history, change),
        loss_plot=loss_curves(history, change),
        samples=_samples(config, task, delivered),
        picture=draw(delivered.original, delivered.groups, delivered.pins),
        config_yaml=config.to_yaml(),
    )


def _samples(config: DetectConfig, task: DetectionTask, delivered: Delivered) -> list[dict[str, Any]]:
    """The first validation images with the boxes that each arm finds in them."""
    indices = range(min(config.detect.shown_images, len(task.val)))
    found = {name: list(found_by(net, task, config.detect, indices)) for name, net in delivered.nets.items()}
    least = config.detect.shown_score
    return [
        {
            "name": task.val.name(index),
            "pictures": {
                NAMES[arm]: draw_boxes(picture, *pairs[index], task.classes, least) for arm, pairs in found.items()
            },
        }
        for index, (picture, _) in zip(indices, task.val.samples(indices), strict=True)
    ]
