"""What a run of Knowledge Evolution came to: ``report.json`` for programs and ``report.html`` for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netaug_fx.training.config import EvolveConfig
from netaug_fx.training.data import Task
from netaug_fx.training.facts import margin, no_onnx_line, run_facts, write_report_files
from netaug_fx.training.plots import generation_curves

if TYPE_CHECKING:
    from netaug_fx.passes.graph import Group

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
    no_onnx: str | None,
) -> dict[str, Any]:
    """Everything the page shows, as JSON values; ``seconds`` is the only one that differs between equal runs.

    ``no_onnx`` says why there is no ONNX file, where there is none.
    """
    generations = [_last(each) for each in finished if each.name != CONTROL]
    control = next((_last(each) for each in finished if each.name == CONTROL), None)
    return {
        **run_facts(config, task),
        "generations": generations,
        "control": control,
        "macs": dict(macs),
        "macs_include": includes,
        "groups": [dataclasses.asdict(group) for group in groups],
        "verification": dict(verification),
        "no_onnx": no_onnx,
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
    last, control = facts["generations"][-1], facts["control"]
    images = facts["data"]["val_images"]
    parts = [f"The dense net {_way(facts['generations'], 'dense')}."]
    if control is not None:
        parts.append(_beside(control["dense"], last["dense"], images))
    if "slim" in last:
        apart = abs(last["dense"] - last["slim"])
        where = f"{apart * 100:.1f} points {'behind' if last['slim'] < last['dense'] else 'ahead of'} it"
        if apart <= margin(last["dense"], last["slim"], images):
            where = "level with the dense net within chance"
        parts.append(f"The slim net {_way(facts['generations'], 'slim')}, {where}.")
    return " ".join(parts)


def _way(generations: Sequence[Mapping[str, Any]], net: str) -> str:
    first, last = (f"{generation[net]:.1%}" for generation in (generations[0], generations[-1]))
    if len(generations) == 1:
        return f"has {last} after the one generation there was"
    return f"goes from {first} after the first generation to {last} after the last"


def _beside(control: float, last: float, images: int) -> str:
    """The last generation against the control."""
    chance = f"{margin(last, control, images) * 100:.1f} points"
    ahead = f"{abs(last - control) * 100:.1f} points {'above' if last > control else 'below'}"
    where = "level with" if last == control else ahead
    return (
        f"That is {where} one run of as many epochs ({control:.1%}); with one seed, differences below about {chance} "
        "are within chance."
    )


def summary(facts: Mapping[str, Any], folder: Path) -> str:
    """What a run came to, in a few lines for the terminal."""
    costs = ", ".join(
        f"{name} net {cost['macs']:,} MACs and {cost['params']:,} parameters" for name, cost in facts["macs"].items()
    )
    passed = "yes" if facts["verification"]["passed"] else "NO, see the report"
    lines = [verdict(facts), f"{costs}; verified: {passed}", no_onnx_line(facts), f"report: {folder / 'report.html'}"]
    return "\n".join(line for line in lines if line)


def write_report(facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``.

    Raises:
        RunError: a file cannot be written.
    """
    control = facts["control"]["dense"] if facts["control"] is not None else None
    write_report_files(
        facts,
        folder,
        "evolve.html.j2",
        verdict=verdict(facts),
        plot=generation_curves(facts["generations"], control, 1 / len(facts["data"]["classes"])),
        config_yaml=EvolveConfig.model_validate(facts["config"]).to_yaml(),
    )
