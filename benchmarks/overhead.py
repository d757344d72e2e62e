"""What a supernet costs: its passes against plain nets, and the time of augment, extract and verify.

Each comparison is a series of pairs in one process, A then B, then B then A, so that drift and other work on the
machine fall on both. Figures are medians of the pairs' ratios, with their spread. From the root of the repository:

    python -m benchmarks.overhead
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import netaug_fx
from benchmarks.dense import dense_net
from netaug_fx.atomic import write_text
from netaug_fx.models import create, names

TARGETS = ("mobilenet_v2_tiny", "mobilenet_v2_035", "mobilenet_v3_035", "proxylessnas_035", "mcunet")
RESULTS = Path(__file__).parent / "results" / "overhead.json"
GOALS = {"target_pass": 1.03, "augment_s": 1.5, "extract_s": 0.3}
RATIO = 3.0

EPILOG = """\
what is measured, for each net, with ratio 3 and training mode throughout
  target pass     forward, backward and one SGD step of the supernet, over the same of the plain model
  augmented pass  forward and backward of the supernet at drawn widths, over the same of a plain dense net of the
                  very same widths (several draws, the same repetitions for each)
  augment, extract  medians after a first call that is reported apart: in a fresh process it also loads parts of torch
  verify          one call, ONNX export and ONNX Runtime included

Each cell of the table holds the median on the wall clock, its quartiles, and after the semicolon the median of CPU
time, which other programs on the machine disturb less. To compare CPU times, use one thread.

examples
  python -m benchmarks.overhead
  python -m benchmarks.overhead --nets mcunet --repetitions 21
  python -m benchmarks.overhead --nets digits_net --batch-size 64 --out digits.json

Close other programs first. A spread between the quartiles of more than a few per cent says that the machine was busy.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description="Measure what a supernet costs over plain nets; print a table and write JSON.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--nets", nargs="+", default=list(TARGETS), choices=names(), metavar="NET", help="zoo names; all five targets"
    )
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="images in a pass; 16")
    parser.add_argument("--resolution", type=_positive, metavar="PIXELS", help="side of the images; each net's own")
    parser.add_argument("--repetitions", type=_positive, default=9, metavar="N", help="pairs, or timed calls; 9")
    parser.add_argument("--draws", type=_positive, default=3, metavar="N", help="assignments of widths; 3")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="CPU threads of torch; 1")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FILE", help="JSON; benchmarks/results/overhead.json"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    nets = []
    for number, name in enumerate(options.nets, start=1):
        print(f"{number} of {len(options.nets)}: {name}", file=sys.stderr, flush=True)
        nets.append(measure(name, options.batch_size, options.resolution, options.repetitions, options.draws))
    result = {
        "command": command(options),
        "goals": GOALS,
        "machine": machine(load),
        "versions": {
            "netaug_fx": netaug_fx.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": {"ratio": RATIO, **{key: getattr(options, key) for key in ("batch_size", "repetitions", "draws")}},
        "seconds": round(time.perf_counter() - started, 1),
        "nets": nets,
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\nwrote {options.out}")


# -- what is measured ------------------------------------------------------------------------------------------------


def measure(name: str, batch_size: int, resolution: int | None, repetitions: int, draws: int) -> dict[str, Any]:
    """All figures of one net; times in seconds."""
    torch.manual_seed(0)
    model = create(name)
    channels, *sides = model.example_input_shape
    x = torch.randn(batch_size, channels, *([resolution, resolution] if resolution else sides))
    first_augment, supernet = timed(lambda: netaug_fx.augment(model))
    first_extract, tiny = timed(lambda: netaug_fx.extract(supernet))
    augment = [timed(lambda: netaug_fx.augment(model))[0] for _ in range(repetitions)]
    extract = [timed(lambda: netaug_fx.extract(supernet))[0] for _ in range(repetitions)]
    verify, report = timed(lambda: netaug_fx.verify(tiny, model))
    target = compared(pairs(training_step(supernet, x), training_step(model, x), repetitions))
    return {
        "name": name,
        "input": list(x.shape),
        "groups": len(supernet.groups),
        "target_pass": target,
        "augmented_pass": augmented_pass(supernet, x, repetitions, draws),
        "augment_s": {**series(augment), "first_call": first_augment.wall},
        "extract_s": {**series(extract), "first_call": first_extract.wall},
        "verify_s": {"wall": verify.wall, "cpu": verify.cpu},
        "verified": report.passed,
    }


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward and step; the learning rate is small so that many repetitions stay in range."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def augmented_pass(supernet: Any, x: Tensor, repetitions: int, draws: int) -> dict[str, Any]:
    """Forward and backward at drawn widths over those of plain dense nets; all pairs of all draws together."""
    supernet.train()
    timings: list[tuple[Timing, Timing]] = []
    for _ in range(draws):
        widths = supernet.sample()
        dense = dense_net(supernet, widths).train()

        def wide(widths: dict[str, int] = widths) -> None:
            supernet.zero_grad()
            with supernet.augmented(widths):
                supernet(x).square().mean().backward()

        def reference(dense: nn.Module = dense) -> None:
            dense.zero_grad()
            dense(x).square().mean().backward()

        timings += pairs(wide, reference, repetitions)
    return compared(timings)


# -- timing ----------------------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """Seconds on the wall, and of CPU time in all threads, which other programs disturb less."""

    wall: float
    cpu: float


def timed(call: Callable[[], Any]) -> tuple[Timing, Any]:
    """How long ``call`` took, and what it returned."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu), result


def pairs(ours: Callable[[], None], plain: Callable[[], None], repetitions: int) -> list[tuple[Timing, Timing]]:
    """Times both calls ``repetitions`` times, in turns first, after one call of each that is not timed."""
    ours()
    plain()
    found = []
    for repetition in range(repetitions):
        if repetition % 2 == 0:
            first = timed(ours)[0]
            found.append((first, timed(plain)[0]))
        else:
            first = timed(plain)[0]
            found.append((timed(ours)[0], first))
    return found


def compared(timings: Sequence[tuple[Timing, Timing]]) -> dict[str, Any]:
    """Spread of the pairs' ratios, and the times behind them."""
    return {
        **spread([ours.wall / plain.wall for ours, plain in timings]),
        "cpu_median": median(ours.cpu / plain.cpu for ours, plain in timings),
        "ours_s": [ours.wall for ours, _ in timings],
        "plain_s": [plain.wall for _, plain in timings],
    }


def series(timings: Sequence[Timing]) -> dict[str, float]:
    """Spread of the times on the wall, and the median of CPU times."""
    return {**spread([timing.wall for timing in timings]), "cpu_median": median(timing.cpu for timing in timings)}


def spread(values: list[float]) -> dict[str, float]:
    lower, _, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "min": min(values), "lower_quartile": lower, "upper_quartile": upper}


# -- what is written -------------------------------------------------------------------------------------------------


def machine(load: float | None) -> dict[str, Any]:
    """What decides the figures besides the code; no names of machines or people."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_at_start": load,
    }


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def command(options: argparse.Namespace) -> str:
    """The command line that repeats these measurements."""
    words = ["python -m benchmarks.overhead"]
    if options.nets != list(TARGETS):
        words += ["--nets", *options.nets]
    words += [f"--batch-size {options.batch_size}", f"--repetitions {options.repetitions}"]
    words += [f"--draws {options.draws}", f"--threads {options.threads}"]
    if options.resolution:
        words.append(f"--resolution {options.resolution}")
    return " ".join(words)


def table(result: dict[str, Any]) -> str:
    """The figures as a markdown table: median of wall times (quartiles), median of CPU times."""
    rows = [
        "| net | target pass / plain | augmented pass / dense | augment, s | extract, s | verify, s |",
        "|---|---|---|---|---|---|",
    ]
    for net in result["nets"]:
        cells = [
            f"`{net['name']}`",
            *(_cell(net[key]) for key in ("target_pass", "augmented_pass", "augment_s", "extract_s")),
        ]
        rows.append(f"| {' | '.join(cells)} | {net['verify_s']['wall']:.1f}; {net['verify_s']['cpu']:.1f} |")
    goals = result["goals"]
    rows.append(f"| to reach | {goals['target_pass']:.2f} | | {goals['augment_s']:.1f} | {goals['extract_s']:.1f} | |")
    return "\n".join(rows)


def _cell(figures: dict[str, Any]) -> str:
    between = f"{figures['lower_quartile']:.2f} - {figures['upper_quartile']:.2f}"
    return f"{figures['median']:.2f} ({between}); {figures['cpu_median']:.2f}"


if __name__ == "__main__":
    main()
