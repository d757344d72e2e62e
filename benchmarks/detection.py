"""Does it help detectors? Mean average precision against multiply-adds, with and without Network Augmentation.

The pipeline of the paper (section 4.3) at small scale: a classifier is trained (here on glyphs instead of ImageNet), a
detector starts from it and is trained on rendered scenes, at several input resolutions. From the repository's root:

    python -m benchmarks.detection
    python -m benchmarks.detection --sides 64 96 --seeds 3
    python -m benchmarks.detection --table

Rows are added to ``benchmarks/results/detection.jsonl`` as trainings end; a run that was stopped goes on where it was
when it is called again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import rows as rows_of
from benchmarks.detection_cell import Cell, work
from benchmarks.processes import Processes, Silent
from benchmarks.rows import ROOT, Row
from benchmarks.seeds import paired, spread
from netaug_fx.atomic import write_text
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.detection.detect_config import DetectConfig
from netaug_fx.training.plots import STYLE, svg_of

RESULTS = ROOT / "benchmarks" / "results" / "detection.jsonl"
CACHE = Path("runs") / "detection"
"""Weights and checkpoints, from the repository's root; not under version control."""
SIDES = (56, 72, 96, 128)
METHODS = {
    "baseline": ("baseline", "baseline"),
    "netaug": ("netaug", "baseline"),
    "netaug twice": ("netaug", "netaug"),
}
"""Of each method, the arm of the classifier and that of the detector."""
COLOURS = {"baseline": "#64748b", "netaug": "#93c5fd", "netaug twice": "#2563eb"}
GLYPHS = {"model.name": "scenes_net", "data.name": "glyphs", "data.image_size": 48, "data.batch_size": 128}
DECIDING = ("benchmarks/detection_cell.py", "models/**/*.py", "netaug_fx/**/*.py", "passes/**/*.py")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to compare")
    p.add_argument("--sides", nargs="+", type=int, default=list(SIDES), metavar="PIXELS", help="input resolutions")
    p.add_argument("--seeds", type=int, default=3, help="seeds, from 0 on (default: 3)")
    p.add_argument("--glyph-steps", type=int, default=1500, help="steps of the classifier, of 128 (default: 1500)")
    p.add_argument("--steps", type=int, default=1500, help="steps of the detector, of 16 scenes (default: 1500)")
    p.add_argument("--val-images", type=int, default=1000, help="scenes to validate on (default: 1000)")
    p.add_argument("--lr", type=float, default=0.1, help="highest learning rate of the detector (default: 0.1)")
    p.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each (default: 2)")
    p.add_argument("--keep-older", action="store_true", help="take rows of other versions for done, too")
    p.add_argument("--table", action="store_true", help="run nothing, print the table of what is there")
    p.add_argument("--out", type=Path, default=RESULTS, help="the JSONL file")
    p.add_argument("--cache", type=Path, default=CACHE, help="folder for weights and checkpoints")
    return p


# -- what there is to train ------------------------------------------------------------------------------------------


def classifiers(options: argparse.Namespace) -> list[Cell]:
    """The trainings on glyphs that the methods start from."""
    arms = sorted({METHODS[method][0] for method in options.methods})
    return [_classifier(options, arm, seed) for seed, arm in itertools.product(range(options.seeds), arms)]


def _classifier(options: argparse.Namespace, arm: str, seed: int) -> Cell:
    epochs = 5
    settings = {
        **GLYPHS,
        "optim.epochs": epochs,
        "optim.warmup_epochs": epochs / 20,
        "data.train_samples": options.glyph_steps // epochs * 128,
        "data.val_samples": options.val_images,
        "arms": [arm],
        "seed": seed,
    }
    facts = {"task": "glyphs", "method": arm, "seed": seed, "side": 48, "asked_steps": options.glyph_steps}
    name = json.dumps(facts)
    weights = options.cache / f"glyphs-{arm}-{seed}-{options.glyph_steps}.safetensors"
    return Cell(name, facts, load_config(TrainConfig, None, settings), weights)


def detectors(options: argparse.Namespace) -> Iterator[Cell]:
    """The trainings on scenes."""
    for seed, side, method in itertools.product(range(options.seeds), options.sides, options.methods):
        of_classifier, of_detector = METHODS[method]
        epochs = 5
        settings = {
            "model.weights": str(_classifier(options, of_classifier, seed).weights),
            "data.image_size": side,
            "data.train_samples": options.steps // epochs * 16,
            "data.val_samples": options.val_images,
            "optim.epochs": epochs,
            "optim.lr": options.lr,
            "optim.warmup_epochs": epochs / 20,
            "arms": [of_detector],
            "seed": seed,
        }
        facts = {"task": "scenes", "method": method, "seed": seed, "side": side}
        facts |= {"asked_steps": options.steps, "glyph_steps": options.glyph_steps, "lr": options.lr}
        facts |= {"val_images": options.val_images}
        yield Cell(json.dumps(facts), facts, load_config(DetectConfig, None, settings))


def versions() -> dict[str, str]:
    """What a row depends on beside its settings."""
    return {"torch": importlib.metadata.version("torch"), "code": rows_of.code_version(*DECIDING)}


def run(options: argparse.Namespace) -> None:
    """Trains what has no row: classifiers first."""
    stamp = versions()
    rows_of.write(options.out, rows_of.read(options.out).values())  # a line that a kill cut short must not go on
    processes = Processes("benchmarks.detection_cell")
    for cells in (classifiers(options), list(detectors(options))):
        rows = rows_of.read(options.out)
        left = [cell for cell in cells if not _is_done(cell, rows.get(cell.name), stamp, options.keep_older)]
        _train(left, options, processes, stamp)


def _is_done(cell: Cell, row: Row | None, stamp: dict[str, str], keep_older: bool) -> bool:
    if row is None or not (keep_older or row["versions"] == stamp):
        return False
    return cell.weights is None or (ROOT / cell.weights).exists()


def _train(left: Sequence[Cell], options: argparse.Namespace, processes: Processes, stamp: dict[str, str]) -> None:
    def one(cell: Cell) -> Row | None:
        place = "-".join(str(value).replace(" ", "-") for value in [*cell.facts.values(), stamp["code"]])
        folder = ROOT / options.cache / "cells" / place  # other code begins anew
        try:
            return processes.ask(work, cell, folder)  # type: ignore[no-any-return]
        except Silent as silent:
            return {"name": cell.name, "crashed": str(silent)}

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, contextlib.closing(processes.each(one, left, jobs=options.jobs)) as rows:
        bar = progress.add_task("trainings", total=len(left))
        for row in rows:
            if row is None:
                raise KeyboardInterrupt
            if "crashed" in row:
                progress.console.print(f"[red]{row['name']}[/red] {row['crashed']}", highlight=False)
            else:
                rows_of.add(options.out, {**row, "versions": stamp})
            progress.advance(bar)


# -- what came out ---------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Markdown: mean average precision by resolution and method, with differences paired by seed; what is saved."""
    seeds = range(options.seeds)
    lines = [
        "| pixels | MACs | method | seeds | mAP, % | mAP at 0.5, % | against baseline, paired |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, method in itertools.product(options.sides, options.methods):
        own, base = (_by_seed(rows, side, name, seeds) for name in (method, "baseline"))
        shared = [seed for seed in seeds if seed in own]
        if not shared:
            continue
        both = [seed for seed in shared if seed in base]
        gain = np.array([100 * (own[seed]["map"] - base[seed]["map"]) for seed in both])
        against = paired(gain) if method != "baseline" and both else ""
        found = [100 * np.array([own[seed][key] for seed in shared]) for key in ("map", "map_50")]
        macs = own[shared[0]]["macs"] / 1e6
        costs = f"| {side} | {macs:.2f}M | {method} | {len(shared)} |"
        lines.append(f"{costs} {spread(found[0])} | {spread(found[1])} | {against} |")
    lines += ["", f"{options.steps} steps of 16 scenes, after {options.glyph_steps} of 128 glyphs."]
    lines += [_saving_line(rows, method, options) for method in options.methods if method != "baseline"]
    return "\n".join(lines)


def _by_seed(rows: Sequence[Row], side: int, method: str, seeds: Sequence[int]) -> dict[int, Row]:
    mine = (row for row in rows if (row["side"], row["method"]) == (side, method) and row.get("map") is not None)
    return {row["seed"]: row for row in mine if row["seed"] in seeds}


def curve(
    rows: Sequence[Row], method: str, options: argparse.Namespace, seeds: Sequence[int]
) -> list[tuple[float, float]]:
    """Multiply-adds and mean over seeds of mean average precision, by resolution."""
    points = []
    for side in sorted(options.sides):
        found = list(_by_seed(rows, side, method, seeds).values())
        if found:
            points.append((float(found[0]["macs"]), float(np.mean([row["map"] for row in found]))))
    return points


def savings(base: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> list[float]:
    """The share of multiply-adds saved at each point of a curve whose precision the base reaches, too.

    What the base needs for it is interpolated between its points, linearly in the logarithm of multiply-adds.
    """
    macs, found = (np.array(values) for values in zip(*base, strict=True))
    if len(base) < 2 or not (np.diff(found) > 0).all():
        return []
    saved = []
    for own_macs, own in other:
        if found[0] <= own <= found[-1]:
            needed = float(np.exp(np.interp(own, found, np.log(macs))))
            saved.append(1 - own_macs / needed)
    return saved


def _saving_line(rows: Sequence[Row], method: str, options: argparse.Namespace) -> str:
    """What is saved by the curves of the means, and by those of each seed."""
    seeds = range(options.seeds)
    everything = _saved(rows, method, options, seeds)
    if not everything:
        return f"`{method}`: no point whose precision the baseline reaches between two of its resolutions."
    each = ", ".join(f"{share:.0%}" for share in everything)
    means = [float(np.mean(saved)) for seed in seeds if (saved := _saved(rows, method, options, [seed]))]
    return (
        f"`{method}`: multiply-adds saved at equal precision {np.mean(everything):.0%} on average ({each}); by the "
        f"curves of single seeds {', '.join(f'{mean:.0%}' for mean in means) or 'nothing can be said'}."
    )


def _saved(rows: Sequence[Row], method: str, options: argparse.Namespace, seeds: Sequence[int]) -> list[float]:
    base, other = (curve(rows, name, options, seeds) for name in ("baseline", method))
    return savings(base, other) if base and other else []


def draw(rows: Sequence[Row], options: argparse.Namespace, path: Path) -> None:
    """Mean average precision over multiply-adds, a line a method, a dot a seed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes: Any = figure.add_subplot()
        for method in options.methods:
            points = curve(rows, method, options, range(options.seeds))
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[method], label=method)
            mine = [row for row in rows if row["method"] == method and row.get("map") is not None]
            axes.plot([r["macs"] for r in mine], [r["map"] for r in mine], ".", color=COLOURS[method], markersize=4)
        axes.set_xscale("log")
        axes.set_xlabel("multiply-adds")
        axes.set_ylabel("mean average precision")
        axes.legend(loc="lower right")
        write_text(path, svg_of(figure, "mean average precision over multiply-adds") + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then prints the table and draws the plot."""
    options = parser().parse_args(argv)
    if not options.table:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        run(options)
    wanted = {cell.name for cell in detectors(options)}
    rows = [row for name, row in rows_of.read(options.out).items() if name in wanted]
    if not rows:
        raise SystemExit(f"{options.out} has no rows of these settings; leave --table out to run them")
    print(table(rows, options))
    draw(rows, options, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
