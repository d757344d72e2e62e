"""Greedy Network Enlarging against scaling all widths by one factor and against compound scaling, at equal cost.

Every seed is a run of ``netaug-fx enlarge``: a search by short trainings, then the grown net and the two scaled ones at
its multiply-adds, trained alike. Seeds that have a row of the same settings are not run again. From the root of the
repository:

    python -m benchmarks.enlarge
    python -m benchmarks.enlarge --seeds 5 --times 4 --step 1.0 --trial-epochs 12
    python -m benchmarks.enlarge --seeds 3 --step 0.5 --trial-epochs 5          # smaller steps, shorter trials
    python -m benchmarks.enlarge --table
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks import seeds
from benchmarks.rows import Row
from benchmarks.seeds import paired, spread
from netaug_fx.atomic import atomic_path
from netaug_fx.training import enlarge_run
from netaug_fx.training.config import EnlargeConfig, load_config
from netaug_fx.training.enlarge_report import NAMES
from netaug_fx.training.path_plots import COLOURS, draw_path
from netaug_fx.training.plots import STYLE

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "enlarge.jsonl"
NETS = ("enlarged", "width", "compound", "original")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = seeds.parser(__doc__, ROWS, model="digits_net", data="glyphs", train_part=0.8, epochs=12)
    p.add_argument("--image-size", type=int, default=12, help="side of the images at first (default: 12)")
    p.add_argument("--train-samples", type=int, default=3000, help="glyphs in an epoch (default: 3000)")
    p.add_argument("--val-samples", type=int, default=4000, help="glyphs that nets are judged by (default: 4000)")
    p.add_argument("--hold-out", type=float, default=0.2, help="of the training images, to choose by (default: 0.2)")
    p.add_argument("--times", type=float, default=4.0, help="multiply-adds at the end over the first (default: 4)")
    p.add_argument("--step", type=float, default=1.0, help="growth in a step, about (default: 1)")
    p.add_argument("--trial-epochs", type=int, default=12, help="epochs of each candidate (default: 12)")
    p.add_argument("--batch-size", type=int, default=32, help="default: 32")
    p.add_argument("--jobs", type=int, default=1, help="processes that train candidates (default: 1)")
    return p


def settings(options: argparse.Namespace, seed: int) -> EnlargeConfig:
    """The settings of one run."""
    return load_config(
        EnlargeConfig,
        None,
        {
            "model.name": options.model,
            "data.name": options.data,
            "data.image_size": options.image_size,
            "data.train_samples": options.train_samples,
            "data.val_samples": options.val_samples,
            "data.val_fraction": round(1 - options.train_part, 9),
            "data.batch_size": options.batch_size,
            "enlarge.times": options.times,
            "enlarge.step": options.step,
            "enlarge.epochs": options.trial_epochs,
            "enlarge.hold_out": options.hold_out,
            "optim.epochs": options.epochs,
            "optim.lr": options.lr,
            "jobs": options.jobs,
            "seed": seed,
            "device": "cpu",
            "threads": 1,
        },
    )


def measure(config: EnlargeConfig, folder: Path) -> Row:
    """Runs one seed and keeps its figures."""
    report = seeds.run_in(folder, enlarge_run, config)
    trials = [json.loads(line)["seconds"] for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]
    found: Row = {key: report[key] for key in ("path", "nets", "macs", "resolution", "changes", "versions", "seconds")}
    found |= {"candidates": len(trials), "search_seconds": round(sum(trials), 1)}
    return {"verified": report["verification"]["passed"], **found}


def table(rows: Sequence[Row]) -> str:
    """Markdown: mean and deviation over seeds by net; what is worth what, paired by seed; what was accepted."""
    lines = ["| net | accuracy, % | million MACs | thousand parameters | pixels |", "|---|---|---|---|---|"]
    for name in NETS:
        costs = [spread(_figures(rows, name, key) / scale) for key, scale in (("macs", 1e6), ("params", 1e3))]
        pixels = spread(_figures(rows, name, "resolution"))
        lines.append(f"| {NAMES[name]} | {spread(_accuracy(rows, name))} | {' | '.join(costs)} | {pixels} |")
    lines.append("")
    for name in NETS[1:]:
        apart = _accuracy(rows, "enlarged") - _accuracy(rows, name)
        lines.append(f"Greedy enlarging against {NAMES[name]}: {paired(apart)}.")
    moves = Counter(step["move"].split()[0] for row in rows for step in row["path"][1:])
    lines.append("Accepted: " + ", ".join(f"{dim} {count} times" for dim, count in moves.most_common()) + ".")
    seconds = sum(row["search_seconds"] + sum(row["seconds"].values()) for row in rows) / len(rows)
    lines.append(
        f"{len(rows)} seeds, {seconds / 60:.1f} minutes of training each; verified: "
        f"{sum(row['verified'] for row in rows)} of {len(rows)}."
    )
    return "\n".join(lines)


def _figures(rows: Sequence[Row], net: str, key: str) -> Any:
    return np.array([row["nets"][net][key] for row in rows], dtype=float)


def _accuracy(rows: Sequence[Row], net: str) -> Any:
    """In percent, by seed."""
    return 100 * _figures(rows, net, "accuracy")


def draw(rows: Sequence[Row], file: Path) -> None:
    """The path of the first seed, and every seed's accuracy by net."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_path(left, rows[0]["path"])
        left.set_title(f"the path of seed {rows[0]['seed']}", fontsize=10)
        for place, name in enumerate(NETS):
            values = _accuracy(rows, name)
            right.plot([place] * len(values), values, "o", color=COLOURS[name], alpha=0.45, markersize=5)
            right.plot([place - 0.2, place + 0.2], [values.mean()] * 2, color=COLOURS[name], linewidth=2)
        right.set_xticks(range(len(NETS)), [NAMES[name].replace(" ", "\n", 1) for name in NETS])
        right.set_ylabel("accuracy, %; seeds and their mean")
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the seeds that are missing, then prints the table and draws the plot."""
    seeds.main(parser().parse_args(argv), settings, measure, table, draw)


if __name__ == "__main__":
    main()
