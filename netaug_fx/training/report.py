"""``report.json`` for programs and ``report.html`` for people: what a run did, and what its result is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from netaug_fx.training.config import TrainConfig
from netaug_fx.training.data import Task
from netaug_fx.training.facts import delivered_row, margin, run_facts, write_report_files
from netaug_fx.training.group_picture import draw
from netaug_fx.training.plots import accuracy_curves, loss_curves
from netaug_fx.training.schedule import phase_change

if TYPE_CHECKING:
    from netaug_fx.passes.graph import Group, Pin


DELIVERED = ("epoch", "val_accuracy", "val_loss", "train_accuracy", "train_loss")
"""What is told of the weights that are delivered, of all that an epoch's row holds."""


@dataclass(frozen=True)
class ArmResult:
    """How an arm ended: one row of metrics for each epoch, optimizer steps, and time spent."""

    history: Sequence[Mapping[str, float]]
    steps: int
    seconds: float


def make_report(
    config: TrainConfig,
    task: Task,
    arms: Mapping[str, ArmResult],
    *,
    groups: Sequence[Group],
    pins: Sequence[Pin],
    macs: Mapping[str, Any],
    verification: Mapping[str, Any],
    no_onnx: str | None,
) -> dict[str, Any]:
    """Everything the page shows, as JSON values; ``seconds`` is the only one that differs between equal runs.

    ``no_onnx`` says why there is no ONNX file, where there is none.
    """
    delivered = {name: delivered_row(arm.history, config.keep.deliver, "val_accuracy") for name, arm in arms.items()}
    results = {
        name: {
            "steps": arm.steps,
            **{key: delivered[name][key] for key in DELIVERED},
            "best_val_accuracy": max(row["val_accuracy"] for row in arm.history),
            "history": [dict(row) for row in arm.history],
        }
        for name, arm in arms.items()
    }
    return {
        **run_facts(config, task),
        "arms": results,
        "comparison": compare(results, len(task.val)),
        "groups": [dataclasses.asdict(group) for group in groups],
        "pins": [dataclasses.asdict(pin) for pin in pins],
        "macs": dict(macs),
        "verification": dict(verification),
        "no_onnx": no_onnx,
        "seconds": {name: round(arm.seconds, 1) for name, arm in arms.items()},
    }


_ONE_RATE = (
    "Both arms had one learning rate. Two losses double the gradient, so the best rate of NetAug is often the lower "
    "one: try several for each arm before you choose."
)


def compare(results: Mapping[str, Mapping[str, Any]], images: int) -> dict[str, Any] | None:
    """The difference between the arms, and how much of it one run can tell (``margin``); None where there is one."""
    if not {"baseline", "netaug"} <= set(results):
        return None
    baseline, netaug = results["baseline"]["val_accuracy"], results["netaug"]["val_accuracy"]
    difference, chance = round((netaug - baseline) * images), margin(baseline, netaug, images)
    return {
        "gain": netaug - baseline,
        "images": difference,
        "margin": chance,
        "within_noise": abs(netaug - baseline) <= chance,
        "better": "neither" if difference == 0 else "netaug" if difference > 0 else "baseline",
    }


def verdict(comparison: Mapping[str, Any] | None, val_images: int) -> str:
    """The comparison in words, whichever arm is ahead."""
    if comparison is None:
        return "One arm was trained, so there is nothing to compare."
    images = abs(comparison["images"])
    if comparison["better"] == "neither":
        lead = f"Both arms end with the same accuracy on the {val_images} validation images."
    else:
        ahead, behind = ("NetAug", "the baseline") if comparison["better"] == "netaug" else ("The baseline", "NetAug")
        lead = (
            f"{ahead} ends {abs(comparison['gain']) * 100:.2f} points above {behind}: "
            f"{images} more of {val_images} validation images right."
        )
    margin = f"{comparison['margin'] * 100:.1f} points"
    if comparison["within_noise"]:
        sure = f"With one seed, differences below about {margin} are within chance, so this run does not rank them."
    else:
        sure = f"With one seed, differences up to about {margin} would be within chance; this one is larger."
    return f"{lead} {sure} {_ONE_RATE}"


def write_report(facts: Mapping[str, Any], original: nn.Module, folder: Path, *, groups: Any, pins: Any) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``.

    Raises:
        RunError: a file cannot be written.
    """
    history = {name: arm["history"] for name, arm in facts["arms"].items()}
    config = facts["config"]
    change = phase_change(config["optim"]["epochs"], config["netaug"]["phase_two"]) if groups else None
    write_report_files(
        facts,
        folder,
        "report.html.j2",
        verdict=verdict(facts["comparison"], facts["data"]["val_images"]),
        accuracy_plot=accuracy_curves(history, change),
        loss_plot=loss_curves(history, change),
        picture=draw(original, groups, pins),
        config_yaml=TrainConfig.model_validate(config).to_yaml(),
    )
