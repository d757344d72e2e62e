"""Several processes on one machine: how much of its speed does each keep, and do drawn widths cost messages?

Two processes with gloo take a step under DistributedDataParallel, each on its share of the batch; in turns with that,
one process takes the same step on its share alone, and two take it without sending anything. From the root of the
repository:

    python -m benchmarks.distributed
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import netaug_fx
from benchmarks import stored
from benchmarks.overhead_nets import make_net, net_names
from benchmarks.overhead_passes import RATIO, Call, loss_of, optimizer_of, plain_step
from benchmarks.timing import cell, spread
from netaug_fx.supernet import control

RESULTS = Path(__file__).parent / "results" / "distributed.json"
NETS = ("mobilenet_v2_tiny", "resnet18")
WARM_ROUNDS = 3  # DistributedDataParallel sorts its buckets in the second step
EPILOG = """\
what is measured, for each net, with ratio 3
  efficiency  seconds of a step of one process on its share of the batch, over those of a step of all processes, each on
              its own share: 1 is the most; and the same where nothing is sent, which tells cores and memory that are
              shared from messages. Within a round all take the same widths
  messages    all collective operations of a step, by torch's profiler: of the plain model; of the supernet at fixed
              widths, which has more gradients to send; of NetAug, whose widths are drawn. The last two must be equal
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    p.add_argument("--nets", nargs="+", default=list(NETS), choices=net_names(), metavar="NET")
    p.add_argument("--processes", type=stored.positive, default=2, metavar="N")
    p.add_argument(
        "--batch-size", type=stored.positive, default=64, metavar="N", help="images in a step of all processes; 64"
    )
    p.add_argument("--resolution", type=stored.positive, default=96, metavar="PIXELS", help="side of the images; 96")
    p.add_argument("--repetitions", type=stored.positive, default=9, metavar="N", help="rounds; 9")
    stored.add_arguments(p, RESULTS)
    return p


def parallel_step(net: nn.Module, x: Tensor, widths: Mapping[str, int] | None = None) -> Call:
    """A step of NetAug, its widths drawn in each process, or fixed; ``net`` is the supernet or what is around it."""
    optimizer = optimizer_of(net.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        if widths is None:
            netaug_fx.step(net, lambda each: loss_of(each, x))
        else:
            with net.no_sync():  # type: ignore[operator]
                loss_of(net, x).backward()
            with net.module.augmented(widths):  # type: ignore[operator, union-attr]
                loss_of(net, x).backward()
        optimizer.step()

    return step


def collectives(call: Call) -> int:
    """How many collective operations a call makes in this process."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("gloo:"))


def measure(rank: int, processes: int, port: int, name: str, options: argparse.Namespace, out: Path) -> None:
    """What runs in each process for one net; the first writes what was found."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    row = _measure(name, options)
    dist.destroy_process_group()
    if rank == 0:
        out.write_text(dumps(row), encoding="utf-8")


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    share = options.batch_size // dist.get_world_size()
    model = make_net(name, options.resolution)
    generator = torch.Generator().manual_seed(dist.get_rank())
    shape = (share, model.example_input_shape[0], options.resolution, options.resolution)  # type: ignore[index]
    x = torch.randn(*shape, generator=generator)
    supernet = netaug_fx.augment(model, RATIO, example_inputs=x[:2])
    fixed = DistributedDataParallel(netaug_fx.augment(model, RATIO, example_inputs=x[:2]))
    fixed_step = parallel_step(fixed, x, supernet.widest)

    def draw_as_of(number: int) -> None:
        control(supernet).draws = number

    made: dict[str, tuple[Callable[[nn.Module, Tensor], Call], nn.Module, Callable[[int], None]]] = {
        "plain": (plain_step, model, _nothing),
        "netaug": (parallel_step, supernet, draw_as_of),
    }
    row: dict[str, Any] = {"name": name, "share": share}
    for kind, (step_of, net, begin) in made.items():
        wrapped = DistributedDataParallel(net)
        apart = DistributedDataParallel(net)
        silent = _silent(apart, step_of(apart, x))
        times = _in_turns(step_of(net, x), step_of(wrapped, x), silent, begin, options.repetitions)
        begin(0)
        row[kind] = {
            "efficiency": spread([alone / together for alone, together, _ in times]),
            "without_messages": spread([alone / apart for alone, _, apart in times]),
            "seconds": times,
            "messages": collectives(step_of(wrapped, x)),
        }
    for _ in range(WARM_ROUNDS):
        fixed_step()
    row["fixed_widths"] = {"messages": collectives(fixed_step)}
    return row


def _silent(wrapped: DistributedDataParallel, step: Call) -> Call:
    def quietly() -> None:
        with wrapped.no_sync():
            step()

    return quietly


def _in_turns(
    alone: Call, together: Call, apart: Call, begin: Callable[[int], None], repetitions: int
) -> list[tuple[float, float, float]]:
    """Seconds of each round: of the first process by itself, the others waiting; of all; of all, sending nothing.

    Args:
        begin: Called in all processes before each call, with the number of the round.
    """
    first = dist.get_rank() == 0
    calls = {"alone": alone if first else _nothing, "together": together, "apart": apart}
    rounds = []
    for number in range(WARM_ROUNDS + repetitions):
        order = list(calls) if number % 2 else list(reversed(calls))
        seconds = {}
        for name in order:
            begin(number)
            seconds[name] = _seconds(calls[name])
        rounds.append((seconds["alone"], seconds["together"], seconds["apart"]))
    return rounds[WARM_ROUNDS:]


def _nothing(*_: int) -> None:
    """What the others do while one process works, and what a plain model does as a round begins."""


def _seconds(call: Call) -> float:
    dist.barrier()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    dist.barrier()
    return seconds


def row_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Starts the processes and gives what the first found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "row.json"
        arguments = (options.processes, port, name, options, found)
        multiprocessing.start_processes(measure, arguments, options.processes, start_method="spawn")
        row: dict[str, Any] = loads(found.read_text(encoding="utf-8"))
    return row


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| net | images a process | plain: efficiency | without messages | NetAug: efficiency | without messages "
        "| messages a step: plain, fixed widths, NetAug |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [cell(row[kind][key]) for kind in ("plain", "netaug") for key in ("efficiency", "without_messages")]
        messages = ", ".join(str(row[kind]["messages"]) for kind in ("plain", "fixed_widths", "netaug"))
        lines.append(f"| `{row['name']}` | {row['share']} | {' | '.join([*cells, messages])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and prints the table."""
    options = parser().parse_args(argv)
    if options.processes < 2 or options.batch_size < 2 * options.processes:
        raise SystemExit("--processes must be at least 2, with at least two images of --batch-size for each")
    stored.measured(options, options.nets, lambda name: row_of(name, options), table)


if __name__ == "__main__":
    main()
