"""Figures over seeds: means with deviations, and differences paired by seed."""

from __future__ import annotations

from typing import Any

from scipy import stats

CONFIDENCE = 0.95


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
