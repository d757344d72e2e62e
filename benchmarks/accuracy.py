"""Does it help? Tiny nets trained with and without Network Augmentation, and by its rivals, over several seeds."""

from __future__ import annotations

import contextlib
import enum
import fnmatch
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import accuracy_plan
from benchmarks import rows as rows_of
from benchmarks.accuracy_methods import METHODS, TASKS
from benchmarks.accuracy_plan import FIRST_RATES, FIRST_TUNING_SEED, Cell, Regime, Request, cells, make_cell, outlook
from benchmarks.accuracy_table import tables
from benchmarks.processes import Processes, Silent
from benchmarks.rows import ROOT, Row
from netaug_fx.errors import InputError

RESULTS = Path("benchmarks") / "results"
CACHE = Path("runs") / "accuracy"
"""Not under version control; both from the repository's root."""

# Of the training package and the models, all but what only shows results.
_SHOWS = ("commands", "group_picture", "pages", "plots", "progress", "recipes", "report", "tracking")
_DECIDES = (
    "netaug_fx/step.py",
    "netaug_fx/distillation.py",
    "netaug_fx/sorting.py",
    "netaug_fx/calibration.py",
    "benchmarks/accuracy_cell.py",
    "benchmarks/accuracy_nets.py",
)

_AUGMENTED_COST = 3.5
"""Time of a step with a wider net over one without, about; for the estimate of the time left alone."""

_SMOOTHING_SECONDS = 1800.0

EPILOG = f"""
A cell is a task, a method, a learning rate and a seed. Each trains in a process of its own, on one thread, by the loop
of `netaug-fx train`. Rows are added to benchmarks/results/accuracy_TASK.jsonl as cells finish; a run that was stopped
goes on where it was when it is called again, and cells whose row is of other code or other settings are run anew.

With --lr auto each method is first run at {" and ".join(map(str, FIRST_RATES))}, then at half or twice its best rate so
far until that is better than both its neighbours, with seeds from {FIRST_TUNING_SEED} on; and then with the reported
seeds at its own best.

Examples:

python -m benchmarks.accuracy --task digits --methods baseline,netaug --lr 0.1

python -m benchmarks.accuracy --task glyphs --methods main --jobs 2

python -m benchmarks.accuracy --task glyphs --methods 'r=*,netaug,baseline' --steps 8000 --net-width 4

python -m benchmarks.accuracy --task glyphs --methods baseline,netaug --set netaug.phase_two=0.25

python -m benchmarks.accuracy --task glyphs --table --plot

python -m benchmarks.accuracy --task fonts --methods 'netaug+kd,netaug' --table --against kd
"""

app = typer.Typer(add_completion=False)
TaskName = enum.Enum("TaskName", {name: name for name in TASKS}, type=str)  # type: ignore[misc]


class Device(str, enum.Enum):
    """Where cells train."""

    cpu = "cpu"
    auto = "auto"


# -- what rows depend on -------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What a row depends on beside its settings."""
    files = [*(ROOT / "netaug_fx" / "training").rglob("*.py"), *(ROOT / "models").glob("*.py")]
    deciding = [str(path.relative_to(ROOT)) for path in files if path.stem not in _SHOWS]
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "code": rows_of.code_version(*_DECIDES, *deciding),
    }


def is_done(row: Row | None, cell: Cell, stamp: dict[str, str] | None) -> bool:
    """Whether a cell need not be run: its row is of this code (of any, without ``stamp``) and of its settings."""
    if row is None or (stamp is not None and row["versions"] != stamp):
        return False
    kept = cell.weights is None or (ROOT / cell.weights).exists()
    return kept and accuracy_plan.still_holds(row, cell)


# -- running -------------------------------------------------------------------------------------------------------


def run_missing(request: Request, path: Path, *, jobs: int, stamp: dict[str, str], keep_older: bool) -> list[str]:
    """Runs all cells without a row, in waves: rates and lengths of some follow from rows of others.

    Returns:
        What went wrong, a line for each cell that has no row.
    """
    _mend(path)
    tried: set[str] = set()
    failed: dict[str, str] = {}
    processes = Processes("benchmarks.accuracy_cell")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=_SMOOTHING_SECONDS) as progress:
        total = sum(count * steps * _cost(name) for name, (count, steps) in outlook(request).items())
        bar = progress.add_task(request.regime.label, total=total)

        def tell(cell: Cell, steps: int) -> None:
            progress.advance(bar, steps * _cost(cell.method))

        def take(row: Row) -> None:
            if "crashed" in row:
                failed[row["name"]] = row["crashed"]
                progress.console.print(f"[red]{row['name']}[/red] {row['crashed']}", highlight=False)
                return
            rows_of.add(path, {**row, "versions": stamp})
            progress.update(bar, description=row["name"])

        while True:
            held = _held(request, path, None if keep_older else stamp)
            done = {row["name"] for row in held}
            known = list(cells(request, held))
            missing = [cell for cell in known if cell.name not in done and cell.name not in tried]
            progress.update(bar, completed=sum(c.steps * _cost(c.method) for c in known if c.name in done))
            if not missing:
                return [f"{name}: {why}" for name, why in failed.items()]
            tried |= {cell.name for cell in missing}
            _run_all(missing, request, jobs, processes, tell, take)


def _cost(method: str) -> float:
    return _AUGMENTED_COST if method in METHODS and METHODS[method].settings["arms"] == ["netaug"] else 1.0


def _held(request: Request, path: Path, stamp: dict[str, str] | None) -> list[Row]:
    """Rows of the regime that need not be run again."""
    held = []
    for row in rows_of.read(path).values():
        method = row["method"]
        if row["regime"] != request.regime.label or method not in (*METHODS, "teacher"):
            continue
        cell = make_cell(request.regime, method, row["role"], row["lr"], row["seed"], cache=request.cache)
        if is_done(row, cell, stamp):
            held.append(row)
    return held


def _mend(path: Path) -> None:
    """Ends a line that a kill cut short; it is left out when rows are read, and the next one must not continue it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def _run_all(
    missing: Sequence[Cell],
    request: Request,
    jobs: int,
    processes: Processes,
    tell: Callable[[Cell, int], None],
    take: Callable[[Row], None],
) -> None:
    """Runs cells side by side; each row is handed over in the caller's thread."""

    def one(cell: Cell) -> Row | None:
        folder = ROOT / request.cache / "cells" / cell.key
        return _run_one(cell, folder, processes, lambda steps: tell(cell, steps))

    with contextlib.closing(processes.each(one, missing, jobs=jobs)) as rows:
        for row in rows:
            if row is None:
                raise KeyboardInterrupt
            take(row)


def _run_one(cell: Cell, folder: Path, processes: Processes, tell: Callable[[int], None]) -> Row | None:
    """The row of one cell, from a process of its own; None if it was interrupted, and has written its checkpoint."""
    from benchmarks.accuracy_cell import work

    try:
        return processes.ask(work, cell, folder, hear=tell)  # type: ignore[no-any-return]
    except Silent as silent:
        return {"name": cell.name, "crashed": str(silent)}


# -- the command line ----------------------------------------------------------------------------------------------


def chosen_methods(text: str) -> tuple[str, ...]:
    """Names of methods, from groups and globs with commas between them.

    Raises:
        typer.BadParameter: one of them matches nothing.
    """
    chosen: list[str] = []
    for part in text.split(","):
        found = [name for name, m in METHODS.items() if fnmatch.fnmatchcase(name, part.strip()) or m.group == part]
        if not found:
            raise typer.BadParameter(f"{part!r} is no method. There are main, ablation, and {', '.join(METHODS)}.")
        chosen += found
    names = tuple(name for name in METHODS if name in chosen)
    for name in names:
        needed = {"baseline", METHODS[name].as_long_as} if METHODS[name].as_long_as else set()
        if needed - set(names):
            raise typer.BadParameter(
                f"{name} takes its length from {' and '.join(sorted(map(str, needed)))}: add both."
            )
    return names


def known_method(name: str) -> str:
    """The name of one method.

    Raises:
        typer.BadParameter: it is none.
    """
    if name not in METHODS:
        raise typer.BadParameter(f"{name!r} is no method. There are {', '.join(METHODS)}.")
    return name


def learning_rates(text: str) -> tuple[float, ...] | None:
    """Learning rates with commas between them; None for ``auto``.

    Raises:
        typer.BadParameter: it is something else.
    """
    if text == "auto":
        return None
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or min(rates) <= 0:
        raise typer.BadParameter(
            f"{text!r} is neither 'auto' nor positive numbers with commas between them, as 0.1,0.2"
        )
    return rates


def more_settings(texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Pairs of name and value.

    Raises:
        typer.BadParameter: there is no ``=``, or the value is not YAML.
    """
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as netaug.phase_two=0.25")
        try:
            yield name, yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"{value!r} is no YAML value") from None


def _list(wanted: bool) -> None:
    if wanted:
        for name, task in TASKS.items():
            typer.echo(f"{name:24} task: {task.about}")
        for name, method in METHODS.items():
            typer.echo(f"{name:24} {method.group}: {method.about}")
        raise typer.Exit


@app.command(help=__doc__, epilog=EPILOG)
def main(
    task: Annotated[TaskName, typer.Option(help="What is learnt.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names, globs, or the groups main and ablation, with commas between them.",
            show_default="main; for --table all",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=FIRST_TUNING_SEED - 1, help="Seeds that are reported.")] = 5,
    lr: Annotated[str, typer.Option(help="auto (each method at its own best), or rates with commas between.")] = "auto",
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Seeds that choose the rate, with --lr auto.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the baseline.")] = None,
    net_width: Annotated[int | None, typer.Option(min=1, help="Channels of the net's stem.")] = None,
    net_depth: Annotated[int | None, typer.Option(min=1, help="Blocks in each of its three stages.")] = None,
    image_size: Annotated[int | None, typer.Option(min=4, help="Side of the images in pixels.")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="Glyphs: so many fixed images, not new ones.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of TrainConfig, for all methods."),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.cpu,
    jobs: Annotated[int, typer.Option(min=1, help="Cells side by side.")] = 2,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; print the tables of all that is there.")] = False,
    against: Annotated[
        str, typer.Option(metavar="METHOD", callback=known_method, help="What tables and pictures compare with.")
    ] = "baseline",
    plot: Annotated[bool, typer.Option("--plot", help="Also draw differences and curves, beside the rows.")] = False,
    keep_older: Annotated[bool, typer.Option("--keep-older", help="Take rows of other code for done.")] = False,
    out: Annotated[Path | None, typer.Option(help="The JSONL file of rows.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for teachers, and for cells under way.")] = CACHE,
    list_: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="Say what the tasks and methods are.")
    ] = False,
) -> None:
    """Runs what is missing, then prints the tables."""
    regime = Regime(
        task.value,
        steps,
        net_width,
        net_depth,
        image_size,
        train_images,
        tuple(more_settings(set_ or [])),
        device.value,
    )
    request = Request(
        regime, chosen_methods(methods or ("*" if table else "main")), learning_rates(lr), seeds, tuning_seeds, cache
    )
    path = out or ROOT / RESULTS / f"accuracy_{task.value}.jsonl"
    failed: list[str] = []
    if not table:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        try:
            for name in request.methods:  # what is wrong with the settings is found before anything runs
                make_cell(regime, name, "report", (request.rates or FIRST_RATES)[0], 0, cache=cache)
        except InputError as error:
            raise typer.BadParameter(str(error)) from None
        failed = run_missing(request, path, jobs=jobs, stamp=versions(), keep_older=keep_older)
    rows = [row for row in rows_of.read(path).values() if table or row["regime"] == regime.label]
    rows = [row for row in rows if row["method"] in (*request.methods, "baseline", against, "teacher")]
    typer.echo(tables(rows, against))
    if plot:
        from benchmarks.accuracy_plots import draw

        for file in draw(rows, path.parent, against):
            typer.echo(f"wrote {file}")
    if failed:
        typer.echo("\n".join(["", "Without a row:", *failed]))
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
