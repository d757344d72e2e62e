"""What a run of Greedy Network Enlarging came to: ``report.json`` for programs and ``report.html`` for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from netaug_fx.candidates import Change, Net, compiled, net_of
from netaug_fx.enlargement import Enlarged
from netaug_fx.passes.fake_macs import at_resolution
from netaug_fx.passes.stages import batch_of, find_stages, macs_by_positions
from netaug_fx.training.arm import Arm
from netaug_fx.training.config import EnlargeConfig
from netaug_fx.training.data import Task
from netaug_fx.training.facts import margin, no_onnx_line, run_facts, write_report_files
from netaug_fx.training.path_plots import cost_picture, path_picture

NAMES = {
    "enlarged": "greedy enlarging",
    "width": "all widths by one factor",
    "compound": "compound scaling",
    "original": "the net as it was",
}
POOLED = "after pooling"


def path_of(found: Enlarged, first: Net, grown: Callable[[Sequence[Change]], nn.Module]) -> dict[str, Any]:
    """What a search came to, as JSON values: each net of the path, and what was tried on the way to it."""
    rows = [{"move": "", "macs": first.macs, "resolution": first.resolution, "score": None, **_stages_of(first)}]
    for step in found.steps:
        accepted = step.accepted
        inputs = at_resolution(first.inputs, accepted.resolution)
        net = net_of(grown(step.changes), inputs)
        tried = [
            {
                "move": str(each.move),
                "macs": each.macs,
                "resolution": each.resolution,
                "score": each.score if math.isfinite(each.score) else None,
            }
            for each in sorted(step.candidates, key=lambda each: -each.score)
        ]
        left_out = [{"move": str(each.move), "why": each.why} for each in step.left_out]
        row = {"move": str(accepted.move), "macs": accepted.macs, "resolution": accepted.resolution}
        row |= {"score": accepted.score, "target": step.target, "candidates": tried, "left_out": left_out}
        rows.append(row | _stages_of(net))
    return {
        "macs": found.macs,
        "resolution": found.resolution,
        "changes": [dict(change) for change in found.changes],
        "path": rows,
    }


def _stages_of(net: Net) -> dict[str, Any]:
    """Multiply-adds by feature-map size, and the stages with their widths."""
    ready = compiled(net)
    by_size: dict[str, int] = {}
    for positions, macs in sorted(macs_by_positions(ready.analysis, batch_of(ready.inputs)).items(), reverse=True):
        name = size_name(positions, net.resolution)
        by_size[name] = by_size.get(name, 0) + macs
    widths = {group.name: group.width for group in ready.plan.groups}
    stages = [
        {
            "name": stage.name,
            "positions": stage.positions,
            "widths": [widths[name] for name in stage.streams if name in widths],
            "blocks": len(stage.blocks),
        }
        for stage in find_stages(net.model, ready.analysis, ready.inputs)
    ]
    return {"by_size": by_size, "stages": stages}


def size_name(positions: int, resolution: int) -> str:
    """A feature map's size as a part of the image's side, which stays when images grow: ``1/4``."""
    if positions <= 1:
        return POOLED
    part = round(resolution / math.sqrt(positions))
    return "full size" if part <= 1 else f"1/{part}"


_PROGRAM = """\
# {name}, enlarged to {macs:,} multiply-adds at {grown} pixels; written by netaug-fx enlarge.

import torch

from netaug_fx.candidates import rebuilt
from netaug_fx.training.model_loading import load_model

CHANGES = [
{changes}
]


def enlarged(num_classes={classes}, in_channels={channels}):
    # without trained weights; those of enlarged.safetensors fit
    small = load_model({name!r}, num_classes=num_classes, in_channels=in_channels, kwargs={kwargs!r})
    net = rebuilt(small, CHANGES, example_inputs=torch.zeros(2, in_channels, {side}, {side}))
    net.example_input_shape = (in_channels, {grown}, {grown})
    return net
"""


def program_of(config: EnlargeConfig, task: Task, found: Mapping[str, Any]) -> str:
    """A file with a function that makes the grown net, to be given to ``--model``."""
    return _PROGRAM.format(
        name=_from_anywhere(config.model.name),
        kwargs=config.model.kwargs,
        macs=found["macs"],
        side=task.image_size,
        grown=found["resolution"],
        classes=len(task.classes),
        channels=task.channels,
        changes="\n".join(f"    {change!r}," for change in found["changes"]),
    )


def _from_anywhere(name: str) -> str:
    """A model's name by which a program finds it from any folder."""
    file, colon, function = name.rpartition(":")
    return f"{Path(file).expanduser().absolute()}{colon}{function}" if file.endswith(".py") else name


def make_report(
    config: EnlargeConfig,
    task: Task,
    found: Mapping[str, Any],
    arms: Sequence[Arm],
    *,
    params: Mapping[str, int],
    macs: Mapping[str, int],
    includes: str,
    verification: Mapping[str, Any],
    no_onnx: str | None,
) -> dict[str, Any]:
    """Everything the page shows, as JSON values; ``seconds`` is the only one that differs between equal runs."""
    return {
        **run_facts(config, task),
        **found,
        "nets": {
            arm.name: {
                "macs": macs[arm.name],
                "params": params[arm.name],
                "resolution": arm.task.image_size,
                "accuracy": arm.history[-1]["val_accuracy"],
                "train_accuracy": arm.history[-1]["train_accuracy"],
                "steps": arm.step,
            }
            for arm in arms
        },
        "macs_include": includes,
        "verification": dict(verification),
        "no_onnx": no_onnx,
        "history": {arm.name: arm.history for arm in arms},
        "seconds": {arm.name: round(arm.seconds, 1) for arm in arms},
    }


def verdict(facts: Mapping[str, Any]) -> str:
    """What greedy enlarging came to beside the others, in words, whichever way it went."""
    nets, images = facts["nets"], facts["data"]["val_images"]
    own = nets["enlarged"]["accuracy"]
    parts = [
        f"From {facts['path'][0]['macs']:,} to {facts['macs']:,} multiply-adds in {len(facts['path']) - 1} steps; "
        f"the grown net has {own:.1%} on the validation images."
    ]
    beside = []
    for name in ("width", "compound", "original"):
        if name in nets:
            other = nets[name]["accuracy"]
            apart = (own - other) * 100
            where = "level with" if own == other else f"{abs(apart):.1f} points {'above' if apart > 0 else 'below'}"
            beside.append(f"{where} {NAMES[name]} ({other:.1%})")
    if beside:
        parts.append(f"That is {', '.join(beside)}.")
    others = [nets[name]["accuracy"] for name in ("width", "compound") if name in nets]
    if others:
        chance = max(margin(own, other, images) for other in others)
        parts.append(f"With one seed, differences below about {chance * 100:.1f} points are within chance.")
    return " ".join(parts)


def summary(facts: Mapping[str, Any], folder: Path) -> str:
    """What a run came to, in a few lines for the terminal."""
    lines = ["step  MACs         pixels  score   accepted"]
    for number, row in enumerate(facts["path"]):
        score = f"{row['score']:.1%}" if row["score"] is not None else "-"
        lines.append(f"{number:<4}  {row['macs']:<11,}  {row['resolution']:<6}  {score:<6}  {row['move'] or '(start)'}")
    lines.append("trained at the end, on all training images:")
    for name, net in facts["nets"].items():
        lines.append(
            f"  {NAMES[name]:<25} {net['accuracy']:.1%}  {net['macs']:,} MACs, {net['params']:,} parameters, "
            f"{net['resolution']} pixels"
        )
    passed = "yes" if facts["verification"]["passed"] else "NO, see the report"
    lines += [verdict(facts), f"verified: {passed}", no_onnx_line(facts), f"report: {folder / 'report.html'}"]
    return "\n".join(line for line in lines if line)


def write_report(facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into ``folder``.

    Raises:
        RunError: a file cannot be written.
    """
    write_report_files(
        facts,
        folder,
        "enlarge.html.j2",
        names=NAMES,
        sizes=list(dict.fromkeys(size for row in facts["path"] for size in row["by_size"])),
        verdict=verdict(facts),
        path_plot=path_picture(facts["path"]),
        cost_plot=cost_picture(facts["nets"], NAMES),
        config_yaml=EnlargeConfig.model_validate(facts["config"]).to_yaml(),
    )
