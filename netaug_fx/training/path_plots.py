"""Pictures of a search by Greedy Network Enlarging, as SVG for the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from netaug_fx.training.plots import STYLE, svg_of

_BLUES = ("#1d4ed8", "#3b82f6", "#7dabf8", "#bcd4fb", "#dbe7fd")
_REST = "#94a3b8"
COLOURS = {"enlarged": "#2563eb", "width": "#f59e0b", "compound": "#10b981", "original": "#64748b"}


def path_picture(path: Sequence[Mapping[str, Any]]) -> str:
    """Multiply-adds by feature-map size after each step (bars), and the score of what was accepted (line)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        draw_path(axes, path)
        return svg_of(figure, "multiply-adds and score by step")


def draw_path(axes: Any, path: Sequence[Mapping[str, Any]]) -> None:
    """The picture of a path, into axes of matplotlib's."""
    steps = range(len(path))
    sizes = list(dict.fromkeys(size for row in path for size in row["by_size"]))
    below = [0.0] * len(path)
    for number, size in enumerate(sizes):
        macs = [row["by_size"].get(size, 0) / 1e6 for row in path]
        colour = _BLUES[number] if number < len(_BLUES) else _REST
        axes.bar(steps, macs, bottom=below, width=0.6, color=colour, label=size)
        below = [low + more for low, more in zip(below, macs, strict=True)]
    axes.set_xlabel("step")
    axes.set_ylabel("million multiply-adds")
    axes.set_ylim(0, 1.35 * max(below))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", title="at feature-map size", title_fontsize=9, ncols=2)
    scored = [(number, row["score"]) for number, row in enumerate(path) if row["score"] is not None]
    if scored:
        right = axes.twinx()
        right.plot(*zip(*scored, strict=True), color="#f59e0b", marker="o", markersize=4)
        right.set_ylabel("score of the accepted net")
        scores = [score for _, score in scored]
        apart = max(scores) - min(scores) or 0.01
        right.set_ylim(min(scores) - 0.1 * apart, max(scores) + 0.4 * apart)  # below the legend
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.grid(visible=False)


def cost_picture(nets: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Accuracy over multiply-adds of the nets that were trained at the end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for name, net in nets.items():
            axes.plot(net["macs"] / 1e6, net["accuracy"], "o", color=COLOURS[name], markersize=8, label=names[name])
        axes.margins(0.15)
        axes.set_xlabel("million multiply-adds")
        axes.set_ylabel("validation accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower right")
        return svg_of(figure, "accuracy by multiply-adds")
