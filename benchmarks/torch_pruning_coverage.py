"""Torch-Pruning and netaug_fx side by side: how many nets each can handle, and on how many it is right.

What is asked of both is written in ``benchmarks/torch_pruning_check.py``. Each net has a process of its own. Rows are
appended to a JSON lines file as they come, and nets with a row of the same versions are not measured again. From the
root of the repository:

    python -m benchmarks.torch_pruning_coverage --nets wirings
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import rows as rows_of
from benchmarks.processes import Processes, Silent
from benchmarks.rows import Row
from benchmarks.torch_pruning_check import OURS, TP, Columns, Subject, Verdict, brief, measure

RESULTS = Path(__file__).parent / "results"
WIRINGS, TORCHVISION = "wirings", "torchvision"
ENOUGH_MACS = 0.5
SLOW_IMPORTS = ("sympy", "torch.fx.experimental.symbolic_shapes", "torch.utils.flop_counter")
"""What torch imports at its first fake tensor; done once for all processes."""
SOURCES = {WIRINGS: ("tests/wirings/*.py",), TORCHVISION: ("benchmarks/zoos/torchvision_nets.py",)}
"""Where the nets of each list are made."""
MEASURING = (
    "benchmarks/coverage_maps.py",
    "benchmarks/torch_pruning_check.py",
    "benchmarks/torch_pruning_adapter.py",
    "tests/invariants.py",
    "tests/original_statistics.py",
)

EPILOG = """\
examples
  python -m benchmarks.torch_pruning_coverage --nets wirings --jobs 2
  python -m benchmarks.torch_pruning_coverage --nets torchvision --names 'resnet*'

A run that was stopped goes on where it was: call it again. --fresh measures nets anew that have a row.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torch_pruning_coverage",
        description="Hold Torch-Pruning and netaug_fx against the same criterion; write JSON lines, print a table.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nets", choices=(WIRINGS, TORCHVISION), required=True, help="the list of nets")
    parser.add_argument("--names", default="*", metavar="GLOB", help="which of them; all by default")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="nets at a time; 1")
    parser.add_argument("--timeout", type=_positive, default=600, metavar="S", help="seconds for a tool on a net; 600")
    parser.add_argument("--fresh", action="store_true", help="measure nets anew that have a row")
    parser.add_argument("--retry", action="store_true", help="measure nets anew on which a tool was not exact")
    parser.add_argument("--keep-older", action="store_true", help="take rows of other versions for done, too")
    parser.add_argument("--out", type=Path, metavar="FILE", help="benchmarks/results/torch_pruning_NETS.jsonl")
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / f"torch_pruning_{options.nets}.jsonl"
    options.chosen = [name for name in names(options.nets) if fnmatch.fnmatchcase(name, options.names)]
    if not options.chosen:
        few = ", ".join(names(options.nets)[:5])
        parser.error(f"argument --names: none of the {options.nets} is called {options.names!r}; they are {few}, ...")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console()
    versions = versions_for(options.nets)
    wanted = set(options.chosen)
    rows = [
        row
        for row in rows_of.read(options.out).values()
        if row["name"] not in wanted or is_done(row, versions, options)
    ]
    rows_of.write(options.out, rows)
    known = {row["name"] for row in rows}
    left = [name for name in options.chosen if name not in known]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(options.nets, total=len(options.chosen), completed=len(options.chosen) - len(left))

        def take(row: Row) -> None:
            rows.append({**row, "versions": versions})
            rows_of.add(options.out, rows[-1])
            progress.update(task, advance=1, description=row["name"])

        measure_all(options.nets, left, options.jobs, options.timeout, take)
    rows.sort(key=lambda row: row["name"])
    rows_of.write(options.out, rows)
    chosen = [row for row in rows if row["name"] in wanted]
    console.print(summary(chosen, options.nets))
    for title, columns_of in (("Torch-Pruning", TP), ("netaug_fx", OURS)):
        wrong = [row["name"] for row in chosen if row[columns_of[1]] is False]
        console.print(f"{title}, silently wrong: {', '.join(wrong) or 'none'}")
    console.print(f"wrote {options.out}")


def is_done(row: Row, versions: dict[str, str], options: argparse.Namespace) -> bool:
    """Whether a net need not be measured (again)."""
    if options.fresh or (options.retry and (row[TP[1]] is not True or row[OURS[1]] is not True)):
        return False
    return options.keep_older or row["versions"] == versions


# -- nets ------------------------------------------------------------------------------------------------------------


def names(nets: str) -> list[str]:
    """All nets of a list."""
    if nets == WIRINGS:
        return list(importlib.import_module("tests.wirings").WIRINGS)
    found: list[str] = importlib.import_module("benchmarks.zoos.torchvision_nets").names()
    return found


def subject(nets: str, name: str) -> Subject:
    """One net of a list, with every weight drawn at random."""
    from tests.wirings import WIRINGS as wirings
    from tests.wirings.registry import randomise

    if nets == WIRINGS:
        wiring = wirings[name]
        return Subject(wiring.build, lambda model: wiring.inputs(2), wiring.mixes)
    net = importlib.import_module("benchmarks.zoos.torchvision_nets").net(name)
    return Subject(lambda: randomise(net.build()), net.inputs, mixes=False)


def versions_for(nets: str) -> dict[str, str]:
    """What a row depends on."""
    packages = ("torch", "torch-pruning", *(["torchvision"] if nets == TORCHVISION else []))
    found = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    return {**found, "code": rows_of.code_version(*MEASURING, *SOURCES[nets])}


# -- processes -------------------------------------------------------------------------------------------------------


def measure_all(nets: str, left: Sequence[str], jobs: int, timeout: float, take: Callable[[Row], None]) -> None:
    """Measures nets, each in a process of its own, and hands over every row as it is ready, in the caller's thread.

    Args:
        nets: The list that the names are of.
        left: Names of nets.
        jobs: Processes at a time.
        timeout: Seconds that one tool may take on one net.
        take: Gets the rows.
    """
    zoo = "tests.wirings" if nets == WIRINGS else "benchmarks.zoos.torchvision_nets"
    processes = Processes("benchmarks.torch_pruning_check", zoo, *SLOW_IMPORTS)

    def one(name: str) -> Row:
        """One tool after the other, each in a process of its own: where one hangs, the other still answers."""
        row: Row = {"name": name}
        for tool in (TP, OURS):
            row |= verdict(processes, nets, name, tool, timeout)
        return row

    for row in processes.each(one, left, jobs=jobs):
        take(row)


def _work(sending: Connection, nets: str, name: str, tool: Columns) -> None:
    torch.set_num_threads(1)
    try:
        sending.send(measure(subject(nets, name), tool))
    except Exception as error:  # the net itself cannot be built or run; the parent writes that into the row
        sending.send({"error": f"the net itself: {brief(error)}"})


def verdict(processes: Processes, nets: str, name: str, tool: Columns, timeout: float) -> Row:
    """The columns of one tool; where its process falls silent or dies, they say so."""
    try:
        row: Row = processes.ask(_work, nets, name, tool, seconds=timeout)
    except Silent as silent:
        row = {"error": str(silent)}
    return Verdict(False, None, None, row["error"]).columns(*tool) if "error" in row else row


# -- rows ------------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], nets: str) -> Table:
    """Counts for both tools."""
    table = Table(title=f"{len(rows)} {nets}")
    for header, justify in (("", "left"), ("Torch-Pruning", "right"), ("netaug_fx", "right")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    for label, holds in COUNTED:
        table.add_row(label, *(str(count) for count in counts(rows, holds)))
    return table


def counts(rows: Iterable[Row], holds: Callable[[bool, bool | None, float | None], bool]) -> tuple[int, int]:
    """On how many rows something holds, for Torch-Pruning and for netaug_fx."""
    rows = list(rows)
    theirs, ours = (sum(holds(*(row[column] for column in tool[:3])) for row in rows) for tool in (TP, OURS))
    return theirs, ours


COUNTED: tuple[tuple[str, Callable[[bool, bool | None, float | None], bool]], ...] = (
    ("its own criterion: runs, augments", lambda works, exact, share: works),
    ("exact", lambda works, exact, share: exact is True),
    ("exact, and more than half of the MACs", lambda works, exact, share: exact is True and (share or 0) > ENOUGH_MACS),
    ("runs, not judged", lambda works, exact, share: works and exact is None),
    ("silently wrong", lambda works, exact, share: exact is False),
    ("fails, or says that it cannot", lambda works, exact, share: not works),
)


if __name__ == "__main__":
    sys.exit(main())
