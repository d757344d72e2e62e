"""Pictures of accuracy: differences with their intervals, and curves. In: rows. Out: PNG files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.accuracy_methods import METHODS
from benchmarks.accuracy_table import lines
from benchmarks.rows import Row
from netaug_fx.atomic import atomic_path


def draw(rows: Sequence[Row], folder: Path, against: str = "baseline") -> list[Path]:
    """Two files for each regime that has something to show.

    Args:
        against: The method that differences are taken to; another than the baseline is part of the file's name.
    """
    name = "differences" if against == "baseline" else f"against_{against}"
    files = []
    for regime in dict.fromkeys(str(row["regime"]) for row in rows):
        of_regime = [row for row in rows if row["regime"] == regime]
        slug = re.sub(r"[^A-Za-z0-9.=]+", "_", regime)
        for kind, figure in ((name, _differences(of_regime, against)), ("curves", _curves(of_regime))):
            if figure is not None:
                files.append(_save(figure, folder / f"accuracy_{slug}_{kind}.png"))
    return files


def _save(figure: Figure, file: Path) -> Path:
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return file


def _differences(rows: Sequence[Row], against: str) -> Figure | None:
    """A point and an interval for each method."""
    shown = [(line, line.difference) for line in lines(rows, against) if line.difference is not None]
    if not shown:
        return None
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for height, (line, difference) in enumerate(reversed(shown)):
        axes.plot([difference], [height], "o", color="C0")
        if line.interval is not None:
            axes.plot(line.interval, [height, height], color="C0")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(shown)), [f"{line.method} ({line.lr:g}, n={line.n})" for line, _ in reversed(shown)])
    axes.set_xlabel(f"points above {against}, with 95 % interval")
    axes.set_title(str(rows[0]["regime"]))
    return figure


def _curves(rows: Sequence[Row]) -> Figure | None:
    """Mean validation accuracy over seeds against steps, and the band from the worst to the best seed."""
    shown = lines(rows)
    if not shown:
        return None
    figure = Figure(figsize=(9, max(4.5, 0.25 * len(shown))), layout="constrained")
    axes = figure.add_subplot()
    for line in shown:
        own = [
            row["curve"]
            for row in rows
            if (row["method"], row["lr"], row["role"]) == (line.method, line.lr, "report") and "curve" in row
        ]
        shortest = min(map(len, own), default=0)
        if not shortest:
            continue
        # Runs whose length follows from measured times differ a little in their steps; points are taken in order.
        steps = np.mean([[point["step"] for point in curve[-shortest:]] for curve in own], 0)
        accuracy = 100 * np.array([[point["val_accuracy"] for point in curve[-shortest:]] for curve in own])
        style = "-" if METHODS[line.method].settings["arms"] == ["netaug"] else "--"
        (drawn,) = axes.plot(steps, accuracy.mean(0), style, label=f"{line.method} ({line.lr:g})")
        axes.fill_between(steps, accuracy.min(0), accuracy.max(0), color=drawn.get_color(), alpha=0.12)
    axes.set_xlabel("steps")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title(str(rows[0]["regime"]))
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
