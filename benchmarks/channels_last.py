"""Does channels-last memory order pay? The plain net's step and NetAug's, in that order and in the usual one.

Times in turns, in one process. From the root of the repository:

    python -m benchmarks.channels_last
    python -m benchmarks.channels_last --nets mcunet --batch-size 128 --out mcunet.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import netaug_fx
from benchmarks import stored
from benchmarks.overhead import NETS, RATIO, RESOLUTION
from benchmarks.overhead_nets import make_net, net_names
from benchmarks.overhead_passes import netaug_step, plain_step
from benchmarks.timing import cell, ratio, rounds

RESULTS = Path(__file__).parent / "results" / "channels_last.json"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nets", nargs="+", default=list(NETS), choices=net_names(), metavar="NET", help="names; all seven")
    p.add_argument("--batch-size", type=stored.positive, default=32, help="images in a pass (default: 32)")
    p.add_argument(
        "--resolution", type=stored.positive, default=RESOLUTION, help="side of the images in pixels (default: 96)"
    )
    p.add_argument("--threads", type=stored.positive, default=1, help="CPU threads of torch (default: 1)")
    p.add_argument("--repetitions", type=stored.positive, default=5, help="rounds (default: 5)")
    stored.add_arguments(p, RESULTS)
    return p


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of one net: seconds in channels-last order over seconds in the usual one, and each step's medians."""
    calls = {}
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model: Any = make_net(name, options.resolution)
        x = torch.randn(options.batch_size, model.example_input_shape[0], options.resolution, options.resolution)
        model, x = model.to(memory_format=order), x.to(memory_format=order)
        supernet: Any = netaug_fx.augment(model, RATIO, example_inputs=x[:2])
        widths = {group.name: group.choices[len(group.choices) // 2] for group in supernet.groups}
        calls["plain", order] = plain_step(model, x)
        calls["step", order] = netaug_step(supernet, x, widths)
    found = rounds({f"{what} {order}": call for (what, order), call in calls.items()}, options.repetitions)
    last, usual = torch.channels_last, torch.contiguous_format
    ratios = {what: ratio(found, f"{what} {last}", f"{what} {usual}") for what in ("plain", "step")}
    return {"name": name, **ratios, "seconds": {call: [t.wall for t in times] for call, times in found.items()}}


def table(result: dict[str, Any]) -> str:
    """One Markdown line a net."""
    lines = ["| net | plain step, channels last / usual | NetAug step, channels last / usual |", "|---|---|---|"]
    lines += [f"| `{row['name']}` | {cell(row['plain'])} | {cell(row['step'])} |" for row in result["rows"]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and prints the table."""
    options = parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    stored.measured(options, options.nets, lambda name: measure(name, options), table)


if __name__ == "__main__":
    main()
