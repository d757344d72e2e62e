"""Does it work on any model? Every net of a zoo through everything that is claimed of it. From the repository's root:

    python -m benchmarks.coverage --zoo timm --max-params 30e6 --jobs 2
    python -m benchmarks.coverage --zoo random --names "[0-4]*"
    python -m benchmarks.coverage --zoo timm --table

Each net runs in a process of its own, under limits of time and memory. Rows are added to
``benchmarks/results/coverage_<zoo>.jsonl`` as nets finish; a run that was interrupted goes on where it stopped, and
nets whose row is of other versions are run anew.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import rows as rows_of
from benchmarks.coverage_table import NOT_ASKED, summary, why_not
from benchmarks.processes import GIB, Processes, Silent
from benchmarks.rows import Row
from netaug_fx.atomic import atomic_path

ZOOS = {
    "timm": ("benchmarks/zoos/timm_nets.py",),
    "torchvision": ("benchmarks/zoos/torchvision_nets.py",),
    "transformers": ("benchmarks/zoos/transformers_nets.py",),
    "random": ("benchmarks/zoos/random_nets.py", "tests/random_nets/*.py"),
}
"""The zoos, and where their nets are made."""
RESULTS = Path(__file__).parent / "results"

MEASURING = (
    "benchmarks/coverage_check.py",
    "benchmarks/coverage_maps.py",
    "tests/invariants.py",
    "tests/original_statistics.py",
    "tests/wirings/registry.py",
)


def versions(zoo: str) -> dict[str, str]:
    """What a row depends on: python, torch, the zoo's package, and the code that is measured and measures."""
    packages = ["torch", *([zoo] if zoo != "random" else []), "onnx", "onnxruntime", "onnxscript"]
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        **{name: importlib.metadata.version(name) for name in packages},
        "code": rows_of.code_version(*MEASURING, *ZOOS[zoo]),
    }


def zoo_module(zoo: str) -> Any:
    """The module that lists a zoo's nets."""
    return importlib.import_module(f"benchmarks.zoos.{zoo}_nets")


# -- one net, in its own process -------------------------------------------------------------------


def _work(answer: Connection, zoo: str, name: str, memory: float, onnx: bool) -> None:
    """Runs in a child process; sends one row."""
    # address space, which counts what is reserved too: twice what the net may use
    resource.setrlimit(resource.RLIMIT_AS, (int(2 * memory * GIB), int(2 * memory * GIB)))
    import torch

    from benchmarks.coverage_check import check_net

    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            row = check_net(zoo_module(zoo).net(name), Path(folder) if onnx else None)
            row = json.loads(json.dumps(row).replace(f"{folder}{os.sep}", ""))  # messages name files in it
    except MemoryError as error:
        row = {"counted": False, "crashed": f"out of memory ({memory:g} GiB): {error}"}
    except Exception as error:  # a net that breaks the checks themselves is a failure to be listed
        row = {"counted": False, "crashed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    answer.send(row)


def run_net(
    processes: Processes, zoo: str, name: str, family: str, *, seconds: float, memory: float, onnx: bool = True
) -> Row:
    """The row of one net, from a process of its own that is ended when its time is over."""
    start = time.monotonic()
    try:
        row: Row = processes.ask(_work, zoo, name, memory, onnx, seconds=seconds)
    except Silent as silent:
        row = {"counted": False, "crashed": str(silent)}
    return {"name": name, "family": family, **row, "wall": round(time.monotonic() - start, 1)}


def run_all(
    todo: Sequence[tuple[str, str]],
    run: Callable[[Processes, str, str], Row],
    processes: Processes,
    *,
    jobs: int,
    path: Path,
    stamp: dict[str, str],
) -> None:
    """Runs nets side by side and adds their rows to the file, each as one whole line."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("nets", total=len(todo))
        failed = 0
        for found in processes.each(lambda net: run(processes, *net), todo, jobs=jobs):
            row = {**found, "versions": stamp}
            rows_of.add(path, row)
            failed += not row["counted"]
            if not row["counted"]:
                progress.console.print(f"[red]{row['name']}[/red] {why_not(row)}", highlight=False)
            progress.update(task, advance=1, description=f"{row['name']} ({failed} failed)")


# -- what is there, what is to do ------------------------------------------------------------------


def chosen_names(zoo: str, pattern: str) -> list[str]:
    """The zoo's nets whose names match a glob.

    Raises:
        SystemExit: none does.
    """
    names = zoo_module(zoo).names()
    chosen = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not chosen:
        raise SystemExit(f"--names {pattern!r} matches none of the {len(names)} nets of {zoo}, such as {names[:3]}")
    return chosen


def within_limit(zoo: str, names: Sequence[str], most: float) -> list[tuple[str, str]]:
    """Name and family of the nets of at most so many parameters, counted on the meta device; the smallest first."""
    import torch

    module = zoo_module(zoo)
    nets = [module.net(name) for name in names]
    if most == float("inf"):
        return [(net.name, net.family) for net in nets]
    known = _sizes_file(zoo)
    sizes: dict[str, int] = json.loads(known.read_text()) if known.exists() else {}
    for net in (net for net in nets if net.name not in sizes):
        with torch.device("meta"):
            sizes[net.name] = sum(p.numel() for p in net.build().parameters())
    with atomic_path(known) as temporary:
        Path(temporary).write_text(json.dumps(sizes), encoding="utf-8")
    return [(net.name, net.family) for net in sorted(nets, key=lambda net: sizes[net.name]) if sizes[net.name] <= most]


def _sizes_file(zoo: str) -> Path:
    stamp = "-".join(f"{k}{v}" for k, v in versions(zoo).items() if k in ("torch", zoo))
    return Path(tempfile.gettempdir()) / f"netaug_fx_sizes_{zoo}_{stamp}.json"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--zoo", choices=ZOOS, required=True)
    p.add_argument("--names", default="*", metavar="GLOB", help="nets to run (default: all)")
    p.add_argument("--max-params", type=float, default=float("inf"), help="leave larger nets out, such as 30e6")
    p.add_argument("--jobs", type=int, default=2, help="nets side by side, one thread each (default: 2)")
    p.add_argument("--seconds", type=float, default=600.0, help="time limit of one net (default: 600)")
    p.add_argument("--memory", type=float, default=8.0, help="memory limit of one net, GiB (default: 8)")
    p.add_argument("--no-onnx", action="store_true", help="do not export (exporting takes longer than all else)")
    p.add_argument("--retry", action="store_true", help="run nets again that failed before")
    p.add_argument("--keep-older", action="store_true", help="take rows of other versions for done, too")
    p.add_argument("--again", action="store_true", help="run all chosen nets again")
    p.add_argument("--table", action="store_true", help="run nothing, print the table of what is there")
    p.add_argument("--out", type=Path, help="the JSONL file (default: benchmarks/results/coverage_<zoo>.jsonl)")
    return p


def is_done(row: Row, stamp: dict[str, str], options: argparse.Namespace) -> bool:
    """Whether a net need not be run (again)."""
    if options.again or (options.retry and not row["counted"]):
        return False
    if row["versions"] != stamp and not options.keep_older:
        return False
    asked_less = row.get("checks", {}).get("onnx") == NOT_ASKED
    return not (asked_less and not options.no_onnx)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, then prints the summary."""
    options = parser().parse_args(argv)
    if options.jobs < 1 or options.seconds <= 0 or options.memory <= 0:
        raise SystemExit("--jobs, --seconds and --memory must be positive")
    path: Path = options.out or RESULTS / f"coverage_{options.zoo}.jsonl"
    if not options.table:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if path.exists():
            rows_of.write(path, rows_of.read(path).values())  # a line that a kill cut short must not be added to
        stamp, rows = versions(options.zoo), rows_of.read(path)
        names = chosen_names(options.zoo, options.names)
        nets = within_limit(options.zoo, names, options.max_params)
        done = {name for name, row in rows.items() if is_done(row, stamp, options)}
        limits = {"seconds": options.seconds, "memory": options.memory, "onnx": not options.no_onnx}
        run_all(
            [net for net in nets if net[0] not in done],
            lambda processes, name, family: run_net(processes, options.zoo, name, family, **limits),
            Processes(f"benchmarks.zoos.{options.zoo}_nets", "benchmarks.coverage_warm"),
            jobs=options.jobs,
            path=path,
            stamp=stamp,
        )
        rows_of.write(path, rows_of.read(path).values())
    else:
        nets = within_limit(options.zoo, chosen_names(options.zoo, options.names), options.max_params)
    rows = rows_of.read(path)
    print(summary([rows[name] for name, _ in nets if name in rows], listed=len(nets)))


if __name__ == "__main__":
    main()
