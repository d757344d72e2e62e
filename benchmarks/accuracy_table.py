"""The tables of accuracy: each method against one of them, paired by seed. In: rows of accuracy. Out: Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.accuracy_methods import METHODS
from benchmarks.accuracy_plan import HIGHEST_RATE, LOWEST_RATE, best_rate
from benchmarks.rows import Row

CONFIDENCE = 0.95
ROUNDING = 1e-4
"""Points: accuracies are stored as 32-bit floats, and one image of a million would be as much."""
HEAD = ("method", "learning rate", "n", "accuracy, %", "training, %", "against {}", "95 % interval", "p", "CPU time")


@dataclass(frozen=True)
class Line:
    """What a method came to at one learning rate; accuracies and differences in points.

    Attributes:
        tuned: Whether the rate is the best of those that were tried for this method.
        n: Seeds with a result.
        diverged: Seeds whose loss was no longer finite.
        mean, deviation: Of the validation accuracy over seeds; the deviation of a sample, None for one seed.
        training: Mean training accuracy over the last epoch.
        difference: Mean over the seeds that the method compared with has too; None for that one itself.
        interval: 95 % confidence interval of the difference (t).
        p: Paired t-test, two-sided, not adjusted for the number of methods.
        time: CPU seconds of training over those of the method compared with, at the same seeds.
    """

    method: str
    lr: float
    tuned: bool
    n: int
    diverged: int
    mean: float
    deviation: float | None
    training: float
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    time: float | None = None


def lines(rows: Sequence[Row], against: str = "baseline") -> list[Line]:
    """A line for each method, in the order of `METHODS`: at its own best rate where several were tried, else at each.

    A method at its own best rate is compared with ``against`` at its own; another with ``against`` at the same.

    Args:
        rows: Those of one regime.
        against: The method that the others are compared with.
    """
    best = {name: best_rate(rows, name) for name in METHODS}
    found = []
    for name in METHODS:
        reported = [row for row in rows if _is(row, name, "report")]
        rates = sorted({row["lr"] for row in reported} if best[name] is None else {best[name]})
        for rate in rates:
            tuned = best[name] is not None
            own = [row for row in reported if row["lr"] == rate]
            other_rate = best[against] if tuned and best[against] is not None else rate
            others = [row for row in rows if _is(row, against, "report") and row["lr"] == other_rate]
            if own:
                found.append(_line(own, [] if name == against else others, tuned))
    return found


def _is(row: Row, method: str, role: str) -> bool:
    return bool(row["method"] == method and row["role"] == role)


def _line(own: Sequence[Row], others: Sequence[Row], tuned: bool) -> Line:
    good = [row for row in own if row["val_accuracy"] is not None]
    accuracies = 100 * np.array([row["val_accuracy"] for row in good])
    other = {row["seed"]: row for row in others if row["val_accuracy"] is not None}
    pairs = [(row, other[row["seed"]]) for row in good if row["seed"] in other]
    line = Line(
        method=own[0]["method"],
        lr=own[0]["lr"],
        tuned=tuned,
        n=len(good),
        diverged=len(own) - len(good),
        mean=float(accuracies.mean()) if good else float("nan"),
        deviation=float(stats.tstd(accuracies)) if len(good) > 1 else None,
        training=100 * float(np.mean([row["train_accuracy"] for row in good])) if good else float("nan"),
    )
    if not pairs:
        return line
    left, right = (100 * np.array([pair[side]["val_accuracy"] for pair in pairs]) for side in (0, 1))
    interval, p = None, None
    if len(pairs) > 1 and np.ptp(left - right) > ROUNDING:  # without spread there is nothing to test
        test = stats.ttest_rel(left, right)
        low, high = test.confidence_interval(CONFIDENCE)
        interval, p = (float(low), float(high)), float(test.pvalue)
    time = float(np.mean([ours["cpu_seconds"] / theirs["cpu_seconds"] for ours, theirs in pairs]))
    compared = {"difference": float((left - right).mean()), "interval": interval, "p": p, "time": time}
    return Line(**{**vars(line), **compared})


def tables(rows: Sequence[Row], against: str = "baseline") -> str:
    """One table for each regime, and the learning rates that were tried."""
    parts = []
    for regime in dict.fromkeys(str(row["regime"]) for row in rows):
        of_regime = [row for row in rows if row["regime"] == regime]
        parts.append("\n".join(_table(regime, of_regime, against)))
    return "\n\n".join(parts) or "no rows yet"


def _table(regime: str, rows: Sequence[Row], against: str) -> Iterator[str]:
    found = lines(rows, against)
    sizes = sorted({row["parameters"] for row in rows if row["role"] != "teacher" and "parameters" in row})
    steps = [row["steps"] for row in rows if row["method"] == "baseline"]
    yield f"**{regime}**: {', '.join(f'{size:,}' for size in sizes)} parameters" + (
        f", {steps[0]:,} steps of the baseline" if steps else ""
    )
    yield ""
    if found:
        yield "| " + " | ".join(HEAD).format(against) + " |"
        yield "|" + "---|" * len(HEAD)
        yield from (_cells(line) for line in found)
        yield ""
    yield from _tried(rows)
    yield from _teacher(rows)
    codes = {row["versions"]["code"] for row in rows}
    code = f"version {codes.pop()}" if len(codes) == 1 else f"{len(codes)} versions"
    yield f"{len(rows)} rows, under {code} of the code. Differences in points, paired by seed; t-tests two-sided,"
    yield "not adjusted for their number."


def _cells(line: Line) -> str:
    edge = line.tuned and line.lr in (LOWEST_RATE, HIGHEST_RATE)
    cells = [
        f"`{line.method}`",
        f"{line.lr:g}" + (" (edge)" if edge else ""),
        f"{line.n}" + (f", {line.diverged} diverged" if line.diverged else ""),
        f"{line.mean:.2f}" + (f" ± {line.deviation:.2f}" if line.deviation is not None else ""),
        f"{line.training:.2f}",
        "" if line.difference is None else f"{line.difference:+.2f}",
        "" if line.interval is None else f"{line.interval[0]:+.2f} to {line.interval[1]:+.2f}",
        "" if line.p is None else f"{line.p:.1g}" if line.p < 0.001 else f"{line.p:.3f}",
        "" if line.time is None else f"{line.time:.2f}x",
    ]
    return "| " + " | ".join(cells) + " |"


def _tried(rows: Sequence[Row]) -> Iterator[str]:
    """The means of the learning rates that were tried, by method."""
    tuning = [row for row in rows if row["role"] == "tuning"]
    if not tuning:
        return
    rates = sorted({row["lr"] for row in tuning})
    seeds = sorted({row["seed"] for row in tuning})
    yield f"Learning rates tried, with {len(seeds)} other seed{'s' if len(seeds) > 1 else ''} (accuracy, %):"
    yield ""
    yield "| method | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|" + "---|" * (len(rates) + 1)
    for name in (name for name in METHODS if any(row["method"] == name for row in tuning)):
        cells = []
        for rate in rates:
            own = [row["val_accuracy"] for row in tuning if row["method"] == name and row["lr"] == rate]
            good = [100 * accuracy for accuracy in own if accuracy is not None]
            cells.append(f"{np.mean(good):.2f}" if good else "diverged" if own else "")
        yield f"| `{name}` | " + " | ".join(cells) + " |"
    yield ""


def _teacher(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row["role"] == "teacher" and row["val_accuracy"] is not None:
            yield f"Teacher: {row['parameters']:,} parameters, {100 * row['val_accuracy']:.2f} %."
            yield ""
