"""Benchmarks that are one whole run a seed: what is missing is run; figures over seeds, paired by seed.

A seed that was stopped goes on where it was when the benchmark is called again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks import rows as rows_of
from benchmarks.rows import Row
from netaug_fx.training.config import RunConfig

CONFIDENCE = 0.95
CACHE = Path("runs") / "seeds"
"""Runs under way, from where the benchmark is called; not under version control."""
_DECIDES_NOTHING = {"keep", "tracking", "opset", "jobs"}


def name_of(config: RunConfig) -> str:
    """What a row is found again by: everything that decides a run."""
    return json.dumps(config.model_dump(mode="json", exclude=_DECIDES_NOTHING), sort_keys=True)


def parser(doc: str | None, rows: Path, **defaults: Any) -> argparse.ArgumentParser:
    """The part of the command line that such benchmarks share.

    Args:
        doc: The benchmark's own text.
        rows: File of its rows.
        defaults: Of ``model``, ``data``, ``train_part`` and ``epochs``.
    """
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = {
        "--model": (str, "net to begin with"),
        "--data": (str, "data set"),
        "--train-part": (float, "part of each class to train on, where the data set is divided here"),
        "--epochs": (int, "epochs of each training"),
        "--lr": (float, "highest learning rate"),
        "--seeds": (int, "runs, from seed 0 on"),
    }
    for flag, (kind, what) in shared.items():
        default = {"lr": 0.1, "seeds": 5, **defaults}[flag[2:].replace("-", "_")]
        p.add_argument(flag, type=kind, default=default, help=f"{what} (default: %(default)s)")
    p.add_argument("--table", action="store_true", help="run nothing, print the table of what is there")
    p.add_argument("--out", type=Path, default=rows, metavar="FILE", help="rows, JSON lines (default: %(default)s)")
    p.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help="runs under way (default: %(default)s)")
    return p


def run_in(folder: Path, runs: Any, config: RunConfig) -> Row:
    """The report of a run of ``runs``, a module with ``start`` and ``resume``."""
    begun = (folder / "config.yaml").exists()
    done: Path = runs.resume(folder) if begun else runs.start(config, folder)
    report: Row = json.loads((done / "report.json").read_text(encoding="utf-8"))
    return report


def main(
    options: argparse.Namespace,
    settings: Callable[[argparse.Namespace, int], Any],
    measure: Callable[[Any, Path], Row],
    table: Callable[[Sequence[Row]], str],
    draw: Callable[[Sequence[Row], Path], None],
) -> None:
    """Runs the seeds that are missing, then prints the table and draws the plot beside the rows.

    Args:
        options: What the command line says.
        settings: Of the run of a seed.
        measure: Runs one seed in a folder, or goes on with the run that is there, and gives its row without a name.
        table: Makes Markdown of rows.
        draw: Writes a plot of rows.

    Raises:
        SystemExit: there is no row, or an option is out of range.
    """
    if options.seeds < 1 or not 0 < options.train_part < 1:
        raise SystemExit("--seeds must be at least 1, and --train-part between 0 and 1")
    configs = [settings(options, seed) for seed in range(options.seeds)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for config in [] if options.table else configs:
        if name_of(config) not in rows_of.read(options.out):
            found = {"name": name_of(config), "seed": config.seed, "code": code_version()}
            folder = options.cache / hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]
            rows_of.add(options.out, {**measure(config, folder), **found})
            shutil.rmtree(folder, ignore_errors=True)
    known = rows_of.read(options.out)
    rows = [known[name_of(config)] for config in configs if name_of(config) in known]
    if not rows:
        raise SystemExit(f"{options.out} has no rows of these settings; leave --table out to run them")
    print(table(rows) + of_other_code(rows))
    draw(rows, options.out.with_suffix(".svg"))


@functools.cache
def code_version() -> str:
    """A hash of all code that takes part in such a run."""
    return rows_of.code_version("passes/**/*.py", "netaug_fx/*.py", "netaug_fx/training/**/*.py", "models/*.py")


def of_other_code(rows: Sequence[Row]) -> str:
    """A sentence about rows that other code measured, none if there are none; rows without a stamp are the oldest."""
    older = [str(row["seed"]) for row in rows if row.get("code") != code_version()]
    if not older:
        return ""
    return (
        f"\nMeasured by an earlier version of the code: seeds {', '.join(older)}; delete their rows to run them anew."
    )


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
