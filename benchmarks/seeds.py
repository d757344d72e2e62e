"""Benchmarks that are one whole run a seed: what is missing is run; figures over seeds, paired by seed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks import rows as rows_of
from benchmarks.rows import Row
from netaug_fx.training.config import RunConfig

CONFIDENCE = 0.95
_DECIDES_NOTHING = {"keep", "tracking", "opset", "jobs"}


def name_of(config: RunConfig) -> str:
    """What a row is found again by: everything that decides a run."""
    return json.dumps(config.model_dump(mode="json", exclude=_DECIDES_NOTHING), sort_keys=True)


def run(
    options: argparse.Namespace,
    configs: Sequence[Any],
    measure: Callable[[Any], Row],
    table: Callable[[Sequence[Row]], str],
    draw: Callable[[Sequence[Row], Path], None],
) -> None:
    """Runs the seeds that are missing, then prints the table and draws the plot beside the rows.

    Args:
        options: With ``out``, the file of rows, and ``table``, to run nothing.
        configs: Settings, one a seed.
        measure: Runs one seed, and gives its row without a name.
        table: Makes Markdown of rows.
        draw: Writes a plot of rows.

    Raises:
        SystemExit: there is no row.
    """
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for config in [] if options.table else configs:
        if name_of(config) not in rows_of.read(options.out):
            rows_of.add(options.out, {**measure(config), "name": name_of(config), "seed": config.seed})
    known = rows_of.read(options.out)
    rows = [known[name_of(config)] for config in configs if name_of(config) in known]
    if not rows:
        raise SystemExit(f"{options.out} has no rows of these settings; leave --table away to run them")
    print(table(rows))
    draw(rows, options.out.with_suffix(".svg"))


def spread(values: Any) -> str:
    """Mean and standard deviation of an array."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def paired(differences: Any) -> str:
    """The mean difference in points, with its interval and a paired t-test."""
    if len(differences) < 2:
        return f"{differences.mean():+.2f} points, one seed"
    if not differences.std():
        return f"{differences.mean():+.2f} points at every seed"
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return f"{differences.mean():+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, p = {test.pvalue:.2g})"
