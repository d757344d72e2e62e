"""Knowledge Evolution on a small training set: dense and slim net by generation, beside one run of as many epochs.

Every seed is a run of ``netaug-fx evolve``; seeds that have a row of the same settings are not run again. From the root
of the repository:

    python -m benchmarks.evolve
    python -m benchmarks.evolve --seeds 5 --generations 6 --epochs 20 --train-part 0.1
    python -m benchmarks.evolve --table
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import seeds
from benchmarks.rows import Row
from benchmarks.seeds import paired, spread
from netaug_fx.atomic import atomic_path
from netaug_fx.training import evolve_run
from netaug_fx.training.config import EvolveConfig, load_config

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "evolve.jsonl"
_EQUAL_BY = 4  # the generation by which the paper's slim nets are level with the dense ones


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = seeds.parser(__doc__, ROWS, model="resnet20", data="digits", train_part=0.2, epochs=20)
    p.add_argument("--keep", type=float, default=0.5, help="part of the channels that is fit (default: 0.5)")
    p.add_argument("--method", choices=("kels", "wels"), default="kels", help="how the net is split (default: kels)")
    p.add_argument("--loss", choices=("labels", "class_wise", "triplet"), default="labels", help="default: labels")
    p.add_argument("--generations", type=int, default=6, help="trainings, of --epochs each (default: 6)")
    return p


def settings(options: argparse.Namespace, seed: int) -> EvolveConfig:
    """The settings of one run."""
    return load_config(
        EvolveConfig,
        None,
        {
            "model.name": options.model,
            "data.name": options.data,
            "data.val_fraction": round(1 - options.train_part, 9),
            "evolve.keep": options.keep,
            "evolve.method": options.method,
            "evolve.loss": options.loss,
            "evolve.generations": options.generations,
            "optim.epochs": options.epochs,
            "optim.lr": options.lr,
            "seed": seed,
            "device": "cpu",
            "threads": 1,
        },
    )


def measure(config: EvolveConfig, folder: Path) -> Row:
    """Runs one seed and keeps its figures."""
    report = seeds.run_in(folder, evolve_run, config)
    keys = ("generations", "control", "macs", "versions", "seconds")
    found: Row = {key: report[key] for key in keys}
    return {"verified": report["verification"]["passed"], **found}


def table(rows: Sequence[Row]) -> str:
    """Markdown: mean and deviation over seeds by generation; then what the last one is worth, paired by seed."""
    dense, slim, control = _accuracies(rows, "dense"), _accuracies(rows, "slim"), _control(rows)
    lines = ["| generation | dense net, % | slim net, % | dense minus slim |", "|---|---|---|---|"]
    for number in range(dense.shape[1]):
        thin = slim[:, number] if slim.size else None
        apart = "" if thin is None else spread(dense[:, number] - thin)
        lines.append(
            f"| {number + 1} | {spread(dense[:, number])} | {'' if thin is None else spread(thin)} | {apart} |"
        )
    lines += [f"| control: one run of as many epochs | {spread(control)} | | |", ""]
    numbers = [number for number in (_EQUAL_BY, dense.shape[1]) if slim.size and number <= dense.shape[1]]
    for number in dict.fromkeys(numbers):
        apart = paired(dense[:, number - 1] - slim[:, number - 1])
        lines.append(f"Dense net against the slim one in generation {number}: {apart}.")
    lines.append(f"Last generation against the first: {paired(dense[:, -1] - dense[:, 0])}.")
    lines.append(f"Last generation against the control: {paired(dense[:, -1] - control)}.")
    costs = rows[0]["macs"]
    lines.append(
        f"{len(rows)} seeds; "
        + ", ".join(
            f"{name} net {cost['macs'] / 1e6:.2f}M MACs, {cost['params']:,} parameters" for name, cost in costs.items()
        )
        + f"; verified: {sum(row['verified'] for row in rows)} of {len(rows)}."
    )
    return "\n".join(lines)


def _accuracies(rows: Sequence[Row], net: str) -> Any:
    """In percent, ``[seeds, generations]``; empty where there is no such net."""
    if net not in rows[0]["generations"][0]:
        return np.empty((len(rows), 0))
    return np.array([[100 * generation[net] for generation in row["generations"]] for row in rows])


def _control(rows: Sequence[Row]) -> Any:
    return np.array([100 * row["control"]["dense"] for row in rows])


def draw(rows: Sequence[Row], file: Path) -> None:
    """Accuracy by generation, a faint line for each seed and a strong one for the mean; the control across."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    numbers = range(1, len(rows[0]["generations"]) + 1)
    for net, colour in (("dense", "#2563eb"), ("slim", "#f59e0b")):
        values = _accuracies(rows, net)
        if values.size:
            axes.plot(numbers, values.T, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(numbers, values.mean(0), color=colour, marker="o", markersize=4, label=f"{net} net")
    axes.axhline(_control(rows).mean(), color="#64748b", linestyle="--", linewidth=1.2, label="one run, as many epochs")
    axes.set_xlabel("generation")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the seeds that are missing, then prints the table and draws the plot."""
    seeds.main(parser().parse_args(argv), settings, measure, table, draw)


if __name__ == "__main__":
    main()
