"""What torch.compile makes of a supernet: its target beside the compiled plain model, whole steps beside eager ones.

All that is compared runs in one process, in turns. From the root of the repository:

    python -m benchmarks.compiled
    python -m benchmarks.compiled --device cuda --mode reduce-overhead --batch-sizes 128 --resolution 160 \\
        --amp --channels-last --divisor 8 --out cuda.json
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import netaug_fx
from benchmarks import stored
from benchmarks.dense import dense_net
from benchmarks.overhead_nets import make_net, net_names
from benchmarks.overhead_passes import (
    RATIO,
    Call,
    Loss,
    least_step,
    loss_of,
    netaug_step,
    plain_step,
    sliced_step,
    synchronized,
)
from benchmarks.slicing import SlicedNet
from benchmarks.timing import cell, ratio, rounds, timed

RESULTS = Path(__file__).parent / "results" / "compiled.json"
NETS = ("mobilenet_v2_tiny", "resnet18", "small_vit")
GOALS = {"target": 1.02, "slicing": 0.33}
WARM_CALLS = 3
"""CUDA graphs are recorded in the second call of each net, and replayed from the third on."""
EPILOG = """\
what is measured, for each net, with ratio 3 and in training mode
  target     a training step of the compiled supernet in target mode, over that of the compiled plain model
  plain      what compiling does for the plain model: compiled over eager
  step       a step of NetAug with each assignment of a pool: compiled over eager
  least      the compiled step over the least it could cost, compiled too: a pass of the plain net, one of a plain dense
             net of the widths drawn, and the optimizer's time on the parameters held
  slicing    the compiled step over an eager one where each layer holds its widest weight and passes read slices
  graphs     how many the steps compiled (forward and backward count as one), and how long they took the first time
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    p.add_argument("--nets", nargs="+", default=list(NETS), choices=net_names(), metavar="NET")
    p.add_argument("--batch-sizes", nargs="+", type=stored.positive, default=[32], metavar="N")
    p.add_argument("--resolution", type=stored.positive, default=96, metavar="PIXELS", help="side of the images; 96")
    p.add_argument("--pool", type=stored.positive, default=2, metavar="K", help="assignments of widths; 2")
    p.add_argument("--repetitions", type=stored.positive, default=5, metavar="N", help="rounds of the whole pool; 5")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--backend", default="inductor", help="of torch.compile; inductor")
    p.add_argument("--mode", help="of torch.compile's inductor, such as reduce-overhead")
    p.add_argument("--amp", action="store_true", help="mixed precision, in bfloat16")
    p.add_argument("--channels-last", action="store_true", help="images and weights in this memory format")
    p.add_argument("--divisor", type=stored.positive, default=1, help="widths above the original's are multiples of it")
    stored.add_arguments(p, RESULTS)
    return p


def in_turn(calls: Sequence[Call]) -> Call:
    """All of them, one after the other."""

    def together() -> None:
        for call in calls:
            call()

    return together


def marked(call: Call) -> Call:
    """The call, as a step of its own for CUDA graphs."""

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        call()

    return step


def distinct(supernet: Any, count: int) -> list[dict[str, int]]:
    """The assignments of a pool.

    Raises:
        SystemExit: the supernet has fewer.
    """
    found = {tuple(widths.values()): widths for widths in (supernet.sample(pool=count) for _ in range(100 * count))}
    if len(found) < count:
        raise SystemExit(f"--pool {count}: only {len(found)} of the assignments differ; give a smaller one")
    return list(found.values())


def loss_in(device: str, *, amp: bool) -> Loss:
    """The loss, with autocast around it alone: what it keeps of the weights must not outlive a step."""

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            return loss_of(net, x)

    return loss


def measure(name: str, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one net at one batch size; seconds are of the whole pool."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    where: dict[str, Any] = {"device": options.device}
    if options.channels_last:
        where["memory_format"] = torch.channels_last
    model = make_net(name, options.resolution)
    example = torch.randn(2, model.example_input_shape[0], options.resolution, options.resolution)  # type: ignore[operator]
    supernet = netaug_fx.augment(model, RATIO, example_inputs=example, divisor=options.divisor).to(**where)
    model = model.to(**where)
    x = torch.randn(batch_size, *example.shape[1:]).to(**where)
    pool = distinct(supernet, options.pool)

    def compiled(net: nn.Module) -> Any:
        return torch.compile(net.train(), fullgraph=True, backend=options.backend, mode=options.mode)

    eager, sliced = copy.deepcopy(supernet), SlicedNet(supernet)
    ours, plain = compiled(supernet), compiled(model)
    loss = loss_in(options.device, amp=options.amp)
    compiled_steps = in_turn([marked(netaug_step(ours, x, widths, loss)) for widths in pool])
    first = timed(compiled_steps)[0].wall
    graphs = counters["stats"]["unique_graphs"]
    dense = [compiled(dense_net(supernet, widths)) for widths in pool]
    calls = {
        "compiled target": marked(plain_step(ours, x, loss)),
        "compiled plain": marked(plain_step(plain, x, loss)),
        "eager plain": plain_step(copy.deepcopy(model), x, loss),
        "compiled step": compiled_steps,
        "eager step": in_turn([netaug_step(eager, x, widths, loss) for widths in pool]),
        "least": in_turn([marked(least_step(plain, wide, supernet, x, loss)) for wide in dense]),
        "slicing": in_turn([sliced_step(sliced, x, widths, loss) for widths in pool]),
    }
    waiting = {key: synchronized(call, x.device) for key, call in calls.items()}
    for call in waiting.values():
        in_turn([call] * WARM_CALLS)()
    found = rounds(waiting, options.repetitions)
    return {
        "name": name,
        "batch_size": batch_size,
        "graphs": graphs,
        "first_s": first,
        "target": ratio(found, "compiled target", "compiled plain"),
        "plain": ratio(found, "compiled plain", "eager plain"),
        "step": ratio(found, "compiled step", "eager step"),
        "least": ratio(found, "compiled step", "least"),
        "slicing": ratio(found, "compiled step", "slicing"),
        "seconds": {key: [timing.wall for timing in times] for key, times in found.items()},
    }


def _cached_in(folder: str) -> AbstractContextManager[Any]:
    """An empty cache of inductor's: the first steps take what they take on a new machine."""
    return patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": folder})


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| net | batch | target / plain, both compiled | plain, compiled / eager | step, compiled / eager "
        "| step / least, both compiled | compiled step / eager slicing | graphs | first steps, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [cell(row[key]) for key in ("target", "plain", "step", "least", "slicing")]
        cells += [str(row["graphs"]), f"{row['first_s']:.0f}"]
        lines.append(f"| `{row['name']}` | {row['batch_size']} | {' | '.join(cells)} |")
    slicing = f"{GOALS['slicing']:.2f}" if result["settings"]["device"] == "cuda" else ""
    return "\n".join([*lines, f"| to reach | | {GOALS['target']:.2f} | | | | {slicing} | pool + 1 | |"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and prints the table."""
    options = parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no CUDA device; leave it out")
    if options.backend not in (known := torch.compiler.list_backends(())):
        raise SystemExit(f"--backend {options.backend}: there is no such backend; there are {', '.join(known)}")
    if options.mode is not None and options.backend != "inductor":
        raise SystemExit(f"--mode {options.mode} is for the backend inductor, not {options.backend}")
    torch.set_num_threads(1)
    # target and pool; the plain and the dense nets share their forwards' code with them
    limit = torch._dynamo.config.patch(recompile_limit=2 * (options.pool + 2))
    items = [(name, batch_size) for name in options.nets for batch_size in options.batch_sizes]
    with tempfile.TemporaryDirectory() as cache, _cached_in(cache), limit:
        stored.measured(options, items, lambda item: measure(*item, options), table)


if __name__ == "__main__":
    main()
