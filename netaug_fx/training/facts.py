"""What the reports of all runs have in common: the facts on top, how sure a difference is, and the two files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import netaug_fx
from netaug_fx.atomic import write_text
from netaug_fx.training.checkpoint import writing
from netaug_fx.training.config import RunConfig
from netaug_fx.training.data import Problem
from netaug_fx.training.pages import templates

FORMAT = 1


def run_facts(config: RunConfig, task: Problem) -> dict[str, Any]:
    """What was run on what, as JSON values."""
    return {
        "format": FORMAT,
        "versions": {"netaug_fx": netaug_fx.__version__, "torch": torch.__version__},
        "model": config.model.name,
        "data": {
            "name": task.name,
            "train_images": len(task.train),
            "val_images": len(task.val),
            "classes": list(task.classes),
            "channels": task.channels,
            "image_size": task.image_size,
            "mean": list(task.mean),
            "std": list(task.std),
        },
        "config": config.model_dump(mode="json"),
    }


def delivered_row(history: Sequence[Mapping[str, float]], deliver: str, score: str) -> Mapping[str, float]:
    """The metrics of the weights that a run delivers: those of its last epoch, or of the first with the best score."""
    return history[-1] if deliver == "last" else max(history, key=lambda row: row[score])


def margin(a: float, b: float, images: int) -> float:
    """How far two accuracies on so many images each may be apart by chance: 1.96 standard errors of their difference.

    Each with one more image right and one more wrong, so that it is not zero where all are right (Agresti and Caffo,
    The American Statistician, 2000). Both nets see the same images, so it errs on the side of calling a difference
    chance.
    """
    more = images + 2
    rates = [(accuracy * images + 1) / more for accuracy in (a, b)]
    return 1.96 * math.sqrt(sum(rate * (1 - rate) for rate in rates) / more)


def no_onnx_line(facts: Mapping[str, Any]) -> str:
    """For the terminal: why there is no ONNX file; empty where there is one."""
    if facts["no_onnx"] is None:
        return ""
    first, *rest = str(facts["no_onnx"]).splitlines()
    return f"no ONNX file: {first}" + (" (more in the report)" if rest else "")


def write_report_files(facts: Mapping[str, Any], folder: Path, template: str, **shown: Any) -> None:
    """Write ``report.json`` and, from a template that is also given what is ``shown``, ``report.html``.

    Raises:
        RunError: a file cannot be written.
    """
    with writing(folder / "report.json"):
        write_text(folder / "report.json", json.dumps(facts, indent=1) + "\n")
    page = templates().get_template(template).render(**facts, **shown)
    with writing(folder / "report.html"):
        write_text(folder / "report.html", page)
