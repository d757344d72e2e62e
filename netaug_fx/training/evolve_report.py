"""What a run of Knowledge Evolution came to: ``report.json`` for programs and ``report.html`` for people."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import netaug_fx
from netaug_fx.atomic import write_text
from netaug_fx.training.checkpoint import writing
from netaug_fx.training.config import EvolveConfig
from netaug_fx.training.data import Task
from netaug_fx.training.pages import templates
from netaug_fx.training.plots import generation_curves

if TYPE_CHECKING:
    from netaug_fx.passes.graph import Group

FORMAT = 1
CONTROL = "control"


@dataclass
class Finished:
    """What came of a generation, or of the control: the rows of its epochs, optimizer steps, and time spent."""

    name: str
    history: list[dict[str, float]]
    steps: int
    seconds: float


def make_report(
    config: EvolveConfig,
    task: Task,
    finished: Sequence[Finished],
    *,
    macs: Mapping[str, Any],
    includes: str,
    groups: Sequence[Group],
    verification: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything the page shows, as JSON values; ``seconds`` is the only one that differs between equal runs."""
    generations = [_last(each) for each in finished if each.name != CONTROL]
    control = next((_last(each) for each in finished if each.name == CONTROL), None)
    return {
        "format": FORMAT,
        "versions": {"netaug_fx": netaug_fx.__version__, "torch": torch.__version__},
        "model": config.model.name,
        "data": {
            "name": task.name,
            "train_images": len(task.train),
            "val_images": len(task.val),
            "classes": list(task.classes),
            "image_size": task.image_size,
            "mean": list(task.mean),
            "std": list(task.std),
        },
        "config": config.model_dump(mode="json"),
        "generations": generations,
        "control": control,
        "macs": dict(macs),
        "macs_include": includes,
        "groups": [dataclasses.asdict(group) for group in groups],
        "verification": dict(verification),
        "history": {each.name: each.history for each in finished},
        "seconds": {each.name: round(each.seconds, 1) for each in finished},
    }


def _last(finished: Finished) -> dict[str, Any]:
    row = finished.history[-1]
    found: dict[str, Any] = {"name": finished.name, "steps": finished.steps}
    names = {"train": "train_accuracy", "dense": "val_accuracy", "slim": "slim_accuracy"}
    return found | {ours: row[name] for ours, name in names.items() if name in row}


def verdict(facts: Mapping[str, Any]) -> str:
    """What the generations came to, in words, whichever way it went."""
    first, last, control = facts["generations"][0], facts["generations"][-1], facts["control"]
    images = facts["data"]["val_images"]
    start, end = f"{first['dense']:.1%}", f"{last['dense']:.1%}"
    parts = [f"The dense net goes from {start} after the first generation to {end} after the last."]
    if control is not None:
        parts.append(_beside(control["dense"], last["dense"], images))
    if "slim" in last:
        apart = last["dense"] - last["slim"]
        level = abs(apart) <= _margin(last["dense"], last["slim"], images)
        place = "level with the dense net within chance" if level else f"{apart * 100:.1f} points behind it"
        ways = f"{first['slim']:.1%} after the first generation and {last['slim']:.1%} after the last"
        parts.append(f"The slim net has {ways}, {place}.")
    return " ".join(parts)


def _beside(control: float, last: float, images: int) -> str:
    """The last generation against the control."""
    margin = f"{_margin(last, control, images) * 100:.1f} points"
    ahead = f"{abs(last - control) * 100:.1f} points {'above' if last > control else 'below'}"
    where = "level with" if last == control else ahead
    return (
        f"That is {where} one run of as many epochs ({control:.1%}); with one seed, differences below about {margin} "
        "are within chance."
    )


def _margin(a: float, b: float, images: int) -> float:
    """1.96 standard errors of the difference of two proportions on so many images each."""
    return 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / images)


def summary(facts: Mapping[str, Any], folder: Path) -> str:
    """What a run came to, in a few lines for the terminal."""
    costs = ", ".join(
        f"{name} net {cost['macs']:,} MACs and {cost['params']:,} parameters" for name, cost in facts["macs"].items()
    )
    passed = "yes" if facts["verification"]["passed"] else "NO, see the report"
    return "\n".join([verdict(facts), f"{costs}; verified: {passed}", f"report: {folder / 'report.html'}"])


def write_report(facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``.

    Raises:
        RunError: a file cannot be written.
    """
    with writing(folder / "report.json"):
        write_text(folder / "report.json", json.dumps(facts, indent=1) + "\n")
    control = facts["control"]["dense"] if facts["control"] is not None else None
    page = (
        templates()
        .get_template("evolve.html.j2")
        .render(
            **facts,
            verdict=verdict(facts),
            plot=generation_curves(facts["generations"], control, 1 / len(facts["data"]["classes"])),
            config_yaml=EvolveConfig.model_validate(facts["config"]).to_yaml(),
        )
    )
    with writing(folder / "report.html"):
        write_text(folder / "report.html", page)
