"""Several processes on one machine: how much of the time of one process on its share of the batch is kept.

Two processes with gloo take a step of NetAug under DistributedDataParallel, each on half of the batch; in turns with
them, one process takes the same step on half of the batch alone. From the root of the repository:

    python -m benchmarks.distributed
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import netaug_fx
from benchmarks.overhead import machine
from benchmarks.overhead_nets import make_net, net_names
from benchmarks.overhead_passes import loss_of, optimizer_of
from benchmarks.timing import spread
from netaug_fx.atomic import write_text

RESULTS = Path(__file__).parent / "results" / "distributed.json"
NETS = ("mobilenet_v2_tiny", "resnet18")
EPILOG = """\
what is measured, for each net, with ratio 3
  efficiency  seconds of a step of one process on its share of the batch, over those of the step of all processes: 1 is
              the most; for the plain model, and for NetAug
  messages    how many all_reduces a step sends, and how many bytes: the widths must add none
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=raw)
    p.add_argument("--nets", nargs="+", default=list(NETS), choices=net_names(), metavar="NET")
    p.add_argument("--processes", type=int, default=2, metavar="N")
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="images in a step of all processes; 64")
    p.add_argument("--resolution", type=int, default=96, metavar="PIXELS", help="side of the images; 96")
    p.add_argument("--repetitions", type=int, default=9, metavar="N", help="rounds; 9")
    p.add_argument("--table", action="store_true", help="run nothing, print what is stored")
    p.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    return p


class Messages:
    """Counts what DistributedDataParallel sends."""

    def __init__(self, wrapped: DistributedDataParallel) -> None:
        self.count, self.bytes = 0, 0
        wrapped.register_comm_hook(None, self._hook)

    # without annotations: torch looks at them, and takes no text for a class
    def _hook(self, group, bucket):  # type: ignore[no-untyped-def]
        self.count += 1
        self.bytes += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(dist.group.WORLD, bucket)


def plain_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward and step."""
    optimizer = optimizer_of(net.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()

    return step


def netaug_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A step of NetAug; the supernet draws the same widths in every process."""
    optimizer = optimizer_of(net.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        netaug_fx.step(net, lambda each: loss_of(each, x))
        optimizer.step()

    return step


def measure(rank: int, processes: int, port: int, options: argparse.Namespace, out: Path) -> None:
    """What runs in each process; the first writes what was found."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    rows = [_measure(name, options) for name in options.nets]
    dist.destroy_process_group()
    if rank == 0:
        out.write_text(json.dumps(rows), encoding="utf-8")


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = make_net(name, options.resolution)
    share = options.batch_size // dist.get_world_size()
    x = torch.randn(share, model.example_input_shape[0], options.resolution, options.resolution)  # type: ignore[operator]
    row: dict[str, Any] = {"name": name, "share": share}
    supernets = [netaug_fx.augment(model, 3.0, example_inputs=x[:2]) for _ in range(2)]
    nets = {"plain": (model, make_net(name, options.resolution)), "netaug": supernets}
    for kind, (alone, shared) in nets.items():
        make = plain_step if kind == "plain" else netaug_step
        wrapped = DistributedDataParallel(shared)
        sent = Messages(wrapped)
        times = _in_turns(make(alone, x), make(wrapped, x), options.repetitions)
        steps = options.repetitions + 1
        row[kind] = {
            "efficiency": spread([one / every for one, every in times]),
            "seconds": times,
            "messages": sent.count / steps,
            "bytes": sent.bytes / steps,
            "gradients": sum(p.numel() * p.element_size() for p in shared.parameters()),
        }
    return row


def _in_turns(alone: Callable[[], None], together: Callable[[], None], repetitions: int) -> list[tuple[float, float]]:
    """Seconds of each round: of the first process by itself, the others waiting, and of all."""
    times = []
    for _ in range(repetitions + 1):
        seconds = []
        for call, takes_part in ((alone, dist.get_rank() == 0), (together, True)):
            dist.barrier()
            start = time.perf_counter()
            if takes_part:
                call()
            seconds.append(time.perf_counter() - start)
            dist.barrier()
        times.append((seconds[0], seconds[1]))
    return times[1:]  # the first round loads parts of torch


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| net | images a process | plain, efficiency | NetAug, efficiency | messages: plain, NetAug "
        "| bytes sent over gradients held: plain, NetAug |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        both = (row["plain"], row["netaug"])
        cells = [_cell(each["efficiency"]) for each in both]
        cells += [", ".join(f"{each['messages']:g}" for each in both)]
        cells += [", ".join(f"{each['bytes'] / each['gradients']:.2f}" for each in both)]
        lines.append(f"| `{row['name']}` | {row['share']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['median']:.2f} ({figures['lower_quartile']:.2f} - {figures['upper_quartile']:.2f})"


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts the processes and gives what the first found."""
    found = options.out.with_suffix(".part")
    found.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        multiprocessing.start_processes(
            measure, (options.processes, port, options, found), options.processes, start_method="spawn"
        )
        rows: list[dict[str, Any]] = json.loads(found.read_text(encoding="utf-8"))
    finally:
        found.unlink(missing_ok=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and prints the table."""
    options = parser().parse_args(argv)
    if not options.table:
        if options.processes < 2 or options.batch_size < 2 * options.processes:
            raise SystemExit("--processes must be at least 2, with at least two images of --batch-size for each")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        settings = {key: getattr(options, key) for key in ("processes", "batch_size", "resolution", "repetitions")}
        versions = {"torch": importlib.metadata.version("torch")}
        result = {
            "machine": machine(load, "cpu"),
            "versions": versions,
            "settings": settings,
            "rows": run(options),
        }
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    if not options.out.exists():
        raise SystemExit(f"{options.out} is not there; leave --table away to make it")
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
