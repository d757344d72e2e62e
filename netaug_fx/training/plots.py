"""Training curves as SVG, for the report page: text stays text, and equal numbers give equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Rows = Sequence[Mapping[str, float]]
COLOURS = {"baseline": "#64748b", "netaug": "#2563eb"}
NAMES = {"baseline": "baseline", "netaug": "NetAug"}

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.8,
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def accuracy_curves(history: Mapping[str, Rows], phase_change: int | None) -> str:
    """Accuracy on the validation images (lines) and the training images (dotted), for each arm, by epoch."""
    with mpl.rc_context(STYLE):
        return _accuracy_curves(history, phase_change)


def _accuracy_curves(history: Mapping[str, Rows], phase_change: int | None) -> str:
    figure, axes = _axes("accuracy", phase_change)
    values: list[float] = []
    for arm, rows in history.items():
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row["train_accuracy"] for row in rows], color=COLOURS[arm], linewidth=1, linestyle=":")
        axes.plot(epochs, [row["val_accuracy"] for row in rows], color=COLOURS[arm], label=NAMES[arm])
        values += [row[key] for row in rows for key in ("train_accuracy", "val_accuracy")]
    # The first epochs are near chance; the scale is for the rest.
    low = sorted(values)[len(values) // 6]
    axes.set_ylim(max(0.0, low - 0.03), min(1.0, max(values)) + 0.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower right", title="validation (training dotted)", title_fontsize=9)
    return _svg(figure, "accuracy")


def precision_curves(history: Mapping[str, Rows], phase_change: int | None) -> str:
    """Mean average precision on the validation images, and that at an overlap of 0.5 (dotted), by epoch."""
    with mpl.rc_context(STYLE):
        return _precision_curves(history, phase_change)


def _precision_curves(history: Mapping[str, Rows], phase_change: int | None) -> str:
    figure, axes = _axes("mean average precision", phase_change)
    for arm, rows in history.items():
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row["val_map_50"] for row in rows], color=COLOURS[arm], linewidth=1, linestyle=":")
        axes.plot(epochs, [row["val_map"] for row in rows], color=COLOURS[arm], label=NAMES[arm])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower right", title="overlaps 0.5 to 0.95 (0.5 dotted)", title_fontsize=9)
    return _svg(figure, "precision")


def loss_curves(history: Mapping[str, Rows], phase_change: int | None) -> str:
    """Training loss of each arm's tiny net, and of the wider nets around it, by epoch; logarithmic."""
    with mpl.rc_context(STYLE):
        return _loss_curves(history, phase_change)


def _loss_curves(history: Mapping[str, Rows], phase_change: int | None) -> str:
    figure, axes = _axes("training loss", phase_change)
    for arm, rows in history.items():
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row["train_loss"] for row in rows], color=COLOURS[arm], label=NAMES[arm])
        if all("augmented_loss" in row for row in rows):
            wider = [row["augmented_loss"] for row in rows]
            axes.plot(epochs, wider, color="#93c5fd", linewidth=1.3, label="wider nets around it")
    axes.set_yscale("log")
    axes.legend(loc="upper right")
    return _svg(figure, "loss")


def generation_curves(generations: Rows, control: float | None, chance: float) -> str:
    """Accuracy of the dense and of the slim net at the end of each generation, and of the control."""
    with mpl.rc_context(STYLE):
        return _generation_curves(generations, control, chance)


def _generation_curves(generations: Rows, control: float | None, chance: float) -> str:
    figure, axes = _axes("accuracy", None)
    axes.set_xlabel("generation")
    numbers = range(1, len(generations) + 1)
    for key, label, colour in (("dense", "dense net", "#2563eb"), ("slim", "slim net", "#f59e0b")):
        if all(key in row for row in generations):
            axes.plot(numbers, [row[key] for row in generations], color=colour, marker="o", markersize=4, label=label)
    if control is not None:
        axes.axhline(control, color="#64748b", linewidth=1.2, linestyle="--", label="one run, as many epochs")
    axes.axhline(chance, color="#cbd5e1", linewidth=1, linestyle=":", label="chance")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower right")
    return _svg(figure, "generations")


def _axes(label: str, phase_change: int | None) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if phase_change is not None:
        axes.axvline(phase_change + 0.5, color="#cbd5e1", linewidth=1, linestyle="--", zorder=0)
        axes.annotate(
            "stream widths fixed from here",
            (phase_change + 0.5, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            color="#94a3b8",
            fontsize=8,
        )
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    return svg_of(figure, f"{salt} by epoch", salt)


def svg_of(figure: Figure, label: str, salt: str = "") -> str:
    """The figure as an SVG element without prolog, date or fixed size; ``salt`` keeps ids of two figures apart."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt or label}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="plot" role="img" aria-label="{label}">{rest}'
