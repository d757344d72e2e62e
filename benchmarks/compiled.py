"""What torch.compile makes of a supernet: its target beside the compiled plain model, whole steps beside eager ones.

All that is compared runs in one process, in turns. From the root of the repository:

    python -m benchmarks.compiled
    python -m benchmarks.compiled --device cuda --mode reduce-overhead --batch-sizes 128 --resolution 160
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import netaug_fx
from benchmarks.overhead import machine
from benchmarks.overhead_nets import make_net, net_names
from benchmarks.overhead_passes import loss_of, optimizer_of, plain_step, sliced_step
from benchmarks.slicing import SlicedNet
from benchmarks.timing import ratio, rounds, timed
from netaug_fx.atomic import write_text

RESULTS = Path(__file__).parent / "results" / "compiled.json"
NETS = ("mobilenet_v2_tiny", "resnet18", "small_vit")
GOAL = 1.02
EPILOG = """\
what is measured, for each net, with ratio 3 and in training mode
  target     a training step of the compiled supernet in target mode, over that of the compiled plain model
  step       a step of NetAug, widths from a pool: compiled over eager
  slicing    the compiled step over the same, eager, where each layer holds its widest weight and passes read slices
  graphs     how many were compiled, and how long the first steps took, one for each assignment of the pool
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    p.add_argument("--nets", nargs="+", default=list(NETS), choices=net_names(), metavar="NET")
    p.add_argument("--batch-sizes", nargs="+", type=int, default=[32], metavar="N")
    p.add_argument("--resolution", type=int, default=96, metavar="PIXELS", help="side of the images; 96")
    p.add_argument("--pool", type=int, default=2, metavar="K", help="assignments of widths; 2")
    p.add_argument("--repetitions", type=int, default=5, metavar="N", help="rounds of the whole pool; 5")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--backend", default="inductor", help="of torch.compile; inductor")
    p.add_argument("--mode", help="of torch.compile's inductor, such as reduce-overhead")
    p.add_argument("--table", action="store_true", help="run nothing, print what is stored")
    p.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    return p


def pool_step(net: Any, supernet: Any, x: Tensor, pool: Sequence[dict[str, int]]) -> Callable[[], None]:
    """Steps of NetAug with each assignment of a pool; ``net`` is the supernet, or what torch.compile put around it."""
    optimizer = optimizer_of(supernet.train().parameters())

    def steps() -> None:
        for widths in pool:
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            loss_of(net, x).backward()
            with supernet.augmented(widths):
                loss_of(net, x).backward()
            optimizer.step()

    return steps


def sliced_steps(sliced: SlicedNet, x: Tensor, pool: Sequence[dict[str, int]]) -> Callable[[], None]:
    """The same by slicing."""
    calls = [sliced_step(sliced, x, widths) for widths in pool]

    def steps() -> None:
        for call in calls:
            call()

    return steps


def measure(name: str, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one net at one batch size; seconds are of the whole pool."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    # the model in training mode, and the supernet's target and pool
    torch._dynamo.config.recompile_limit = max(8, options.pool + 4)
    model = make_net(name, options.resolution)
    example = torch.randn(2, model.example_input_shape[0], options.resolution, options.resolution)
    supernet = netaug_fx.augment(model, 3.0, example_inputs=example).to(options.device)
    model = model.to(options.device)
    x = torch.randn(batch_size, *example.shape[1:], device=options.device)
    pool = [supernet.sample() for _ in range(options.pool)]
    eager, sliced = copy.deepcopy(supernet), SlicedNet(supernet)
    ours, plain = (_compiled(net, options) for net in (supernet, model))
    calls = {
        "compiled target": _target_step(ours, supernet, x),
        "compiled plain": _target_step(plain, model, x),
        "eager plain": plain_step(copy.deepcopy(model), x),
        "compiled step": pool_step(ours, supernet, x, pool),
        "eager step": pool_step(eager, eager, x, pool),
        "slicing": sliced_steps(sliced, x, pool),
    }
    first = timed(calls["compiled step"])[0].wall
    graphs = counters["stats"]["unique_graphs"]
    found = rounds({key: _waiting(call, options.device) for key, call in calls.items()}, options.repetitions)
    return {
        "name": name,
        "batch_size": batch_size,
        "graphs": graphs,
        "breaks": sum(counters["graph_break"].values()),
        "first_s": first,
        "target": ratio(found, "compiled target", "compiled plain"),
        "plain": ratio(found, "compiled plain", "eager plain"),
        "step": ratio(found, "compiled step", "eager step"),
        "slicing": ratio(found, "compiled step", "slicing"),
        "seconds": {key: [timing.wall for timing in times] for key, times in found.items()},
    }


def _compiled(net: nn.Module, options: argparse.Namespace) -> Any:
    return torch.compile(net.train(), fullgraph=True, backend=options.backend, mode=options.mode)


def _target_step(compiled: Any, net: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = optimizer_of(net.parameters())

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        loss_of(compiled, x).backward()
        optimizer.step()

    return step


def _waiting(call: Callable[[], None], device: str) -> Callable[[], None]:
    def waiting() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return waiting


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| net | batch | target / plain, both compiled | plain, compiled / eager | step, compiled / eager "
        "| step, compiled / slicing | graphs | breaks | first steps, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [_cell(row[key]) for key in ("target", "plain", "step", "slicing")]
        cells += [str(row["graphs"]), str(row["breaks"]), f"{row['first_s']:.0f}"]
        lines.append(f"| `{row['name']}` | {row['batch_size']} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| to reach | | {GOAL:.2f} | | | | {result['settings']['pool'] + 1} | 0 | |"])


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['median']:.2f} ({figures['lower_quartile']:.2f} - {figures['upper_quartile']:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and prints the table."""
    options = parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no CUDA device; leave it away")
    if not options.table:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        torch.set_num_threads(1)
        rows = []
        for name in options.nets:
            for batch_size in options.batch_sizes:
                print(f"{name}, batch of {batch_size}", flush=True)
                rows.append(measure(name, batch_size, options))
        settings = {
            key: getattr(options, key) for key in ("resolution", "pool", "repetitions", "device", "backend", "mode")
        }
        versions = {"torch": importlib.metadata.version("torch")}
        result = {"machine": machine(load, options.device), "versions": versions, "settings": settings, "rows": rows}
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    if not options.out.exists():
        raise SystemExit(f"{options.out} is not there; leave --table away to make it")
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
