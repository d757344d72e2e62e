"""Times of calls that are compared: in turns, in one process, so that drift and other load fall on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds on the wall, and of CPU time in all threads, which other programs disturb less."""

    wall: float
    cpu: float


def timed(call: Callable[[], Any]) -> tuple[Timing, Any]:
    """How long ``call`` took, and what it returned."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu), result


Rounds = dict[str, list[Timing]]
"""Times of each call by its name, one a round."""


def rounds(calls: Mapping[str, Callable[[], Any]], repetitions: int) -> Rounds:
    """Times all calls ``repetitions`` times, after one call of each that is not timed.

    Each round starts one call further on, and every other runs backwards, so that none always has the same before it.
    """
    names = list(calls)
    for call in calls.values():
        call()
    found: Rounds = {name: [] for name in names}
    for repetition in range(repetitions):
        start = repetition // 2 % len(names)
        order = [*names[start:], *names[:start]]
        for name in order if repetition % 2 == 0 else reversed(order):
            found[name].append(timed(calls[name])[0])
    return found


def ratio(found: Rounds, ours: str, others: str) -> dict[str, float]:
    """The spread over rounds of one call's time over another's, on the wall, and the median ratio of CPU times."""
    pairs = list(zip(found[ours], found[others], strict=True))
    return {
        **spread([a.wall / b.wall for a, b in pairs]),
        "cpu_median": median(a.cpu / b.cpu for a, b in pairs),
    }


def series(timings: Sequence[Timing]) -> dict[str, float]:
    """Spread of the times on the wall, and the median of CPU times."""
    return {**spread([timing.wall for timing in timings]), "cpu_median": median(timing.cpu for timing in timings)}


def spread(values: list[float]) -> dict[str, float]:
    """Median, least, and quartiles."""
    lower, _, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "min": min(values), "lower_quartile": lower, "upper_quartile": upper}


def cell(figures: Mapping[str, float]) -> str:
    """Median and quartiles, for a table."""
    return f"{figures['median']:.2f} ({figures['lower_quartile']:.2f} - {figures['upper_quartile']:.2f})"
