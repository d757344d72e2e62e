"""How cost grows with depth, width and ratio: the time of augment, memory held, the time of a step.

ResNets for images of 32 pixels, one thread. Exponents are slopes of straight lines through the logarithms of
the larger half of the points, where fixed costs are outgrown. From the root of the repository:

    python -m benchmarks.scaling
    python -m benchmarks.scaling --sweeps depth --depths 20 56 110 --out depths.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import netaug_fx
from benchmarks import stored
from benchmarks.memory import peak_bytes
from benchmarks.overhead_passes import loss_of, netaug_step
from benchmarks.timing import timed
from netaug_fx.models import ResNetCifar

RESULTS = Path(__file__).parent / "results" / "scaling.json"
DEPTHS, WIDTHS, RATIOS = (20, 56, 110, 218, 434, 1202), (1, 2, 4, 8, 16), (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
FIGURES = {"augment_s": "augment, s", "step_s": "step, s", "held": "parameters held", "pass_bytes": "a pass, MB"}
DEPTH_GOAL = 1.1
"""Highest exponent of the time of augment with depth."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sweeps", nargs="+", choices=("depth", "width", "ratio"), default=["depth", "width", "ratio"])
    p.add_argument("--depths", nargs="+", type=_depth, default=list(DEPTHS), help="layers, 6n + 2; at width 1, ratio 3")
    p.add_argument(
        "--widths", nargs="+", type=stored.positive, default=list(WIDTHS), help="factors; at depth 20, ratio 3"
    )
    p.add_argument("--ratios", nargs="+", type=_ratio, default=list(RATIOS), help="at depth 20, width 1")
    p.add_argument("--batch-size", type=stored.positive, default=2, help="images in a step (default: 2)")
    p.add_argument(
        "--repetitions", type=stored.positive, default=3, help="timed calls, of which the median counts (default: 3)"
    )
    stored.add_arguments(p, RESULTS)
    return p


def _depth(text: str) -> int:
    depth = stored.positive(text)
    if depth < 8 or depth % 6 != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not 6n + 2 layers, such as 20")
    return depth


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 1 < ratio < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 1")
    return ratio


def points(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is measured: depth, width and ratio of each point, and the sweep that it belongs to."""
    base = {"depth": 20, "width": 1, "ratio": 3.0}
    values = {"depth": options.depths, "width": options.widths, "ratio": options.ratios}
    return [{**base, sweep: value, "sweep": sweep} for sweep in options.sweeps for value in sorted(values[sweep])]


def measure(point: dict[str, Any], batch_size: int, repetitions: int) -> dict[str, Any]:
    """Figures of one net: seconds, parameters, bytes of tensors that one step makes beside them."""
    torch.manual_seed(0)
    model = ResNetCifar(int(point["depth"]), width=int(point["width"]))
    x = torch.randn(batch_size, 3, 32, 32)

    def augment() -> Any:
        return netaug_fx.augment(model, point["ratio"], example_inputs=x[:2])

    seconds = [timed(augment)[0].cpu for _ in range(repetitions)]
    supernet = augment()
    step = netaug_step(supernet, x, supernet.widest)
    step()
    return {
        **point,
        "augment_s": median(seconds),
        "step_s": median(timed(step)[0].cpu for _ in range(repetitions)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held": sum(parameter.numel() for parameter in supernet.parameters()),
        "pass_bytes": peak_bytes(lambda: _widest_pass(supernet, x)),
    }


def _widest_pass(supernet: Any, x: torch.Tensor) -> None:
    with supernet.augmented(supernet.widest):
        loss_of(supernet, x).backward()


def exponent(rows: Sequence[dict[str, Any]], sweep: str, figure: str) -> float:
    """The slope through the larger half of the points, in logarithms; not a number where there is one point."""
    larger = rows[len(rows) // 2 - (len(rows) < 4) :] if len(rows) > 1 else rows
    if len(larger) < 2:
        return float("nan")
    x, y = (np.log([row[key] for row in larger]) for key in (sweep, figure))
    return float(np.polyfit(x, y, 1)[0])


def table(result: dict[str, Any]) -> str:
    """A Markdown table for each sweep, with the exponents in the last row."""
    parts = []
    for sweep in result["settings"]["sweeps"]:
        rows = [row for row in result["rows"] if row["sweep"] == sweep]
        lines = [f"| {sweep} | parameters | {' | '.join(FIGURES.values())} |", "|" + "---|" * (2 + len(FIGURES))]
        for row in rows:
            cells = [f"{row['augment_s']:.2f}", f"{row['step_s']:.3f}", f"{row['held'] / 1e6:.2f}M"]
            cells.append(f"{row['pass_bytes'] / 1e6:.1f}")
            lines.append(f"| {row[sweep]:g} | {row['parameters'] / 1e6:.2f}M | {' | '.join(cells)} |")
        powers = " | ".join(f"{exponent(rows, sweep, figure):.2f}" for figure in FIGURES)
        lines.append(f"| exponent | {exponent(rows, sweep, 'parameters'):.2f} | {powers} |")
        if sweep == "depth":
            lines.append(f"| to reach | | {DEPTH_GOAL:.2f} |{' |' * (len(FIGURES) - 1)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and prints the tables."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    if not options.table:
        measure({"depth": 8, "width": 1, "ratio": 2.0}, 2, 1)  # the first call of a process loads parts of torch
    batch_size, repetitions = options.batch_size, options.repetitions
    stored.measured(options, points(options), lambda point: measure(point, batch_size, repetitions), table)


if __name__ == "__main__":
    main()
