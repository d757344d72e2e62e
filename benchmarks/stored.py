"""Figures in one JSON file: measured one by one, written whole at the end, then printed as a table; or only printed."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.rows import code_version
from netaug_fx.atomic import write_text

Item = TypeVar("Item")


def positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """``--table`` and ``--out``."""
    parser.add_argument("--table", action="store_true", help="run nothing, print what is stored")
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help="the JSON file")


def measured(
    options: argparse.Namespace,
    items: Sequence[Item],
    measure: Callable[[Item], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measures unless only the table is wanted, writes the file, and prints the table.

    Args:
        options: The command line; all of it but ``--table`` and ``--out`` is written along.
        items: What is measured.
        measure: Gives the row of one.
        table: Makes the table of what the file holds: ``settings``, ``torch``, ``load`` and ``rows``.

    Raises:
        SystemExit: the table is wanted, and nothing is there; or the file holds figures of other settings, which would
            be lost.
    """
    settings = {key: value for key, value in vars(options).items() if key not in ("table", "out")}
    if not options.table:
        keep_others(options.out, settings)
        facts = {"settings": settings, "torch": importlib.metadata.version("torch"), "load": load()}
        finish(options.out, {**facts, "rows": one_by_one(options.out, settings, items, measure)})
    if not options.out.exists():
        raise SystemExit(f"{options.out} is not there; leave --table out to make it")
    result = json.loads(options.out.read_text(encoding="utf-8"))
    if result.get("settings", {}).keys() != settings.keys():
        raise SystemExit(f"{options.out} was written by another benchmark")
    print(table(result))


def load() -> float | None:
    """Programs that ran in the last minute, on average; None where the system does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def one_by_one(
    out: Path, settings: Mapping[str, Any], items: Sequence[Item], measure: Callable[[Item], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The row of each item, written to a file beside ``out`` once it is known: an interrupted run goes on there.

    Rows of other settings, of another torch or of other code are measured anew.
    """
    part = _part(out)
    code, torch = code_version("benchmarks/*.py"), importlib.metadata.version("torch")
    made_by = json.loads(json.dumps({"settings": settings, "code": code, "torch": torch}))
    rows: list[dict[str, Any]] = []
    if part.exists():
        there = json.loads(part.read_text(encoding="utf-8"))
        rows = there["rows"] if there == {**made_by, "rows": there["rows"]} else []
    out.parent.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(items, start=1):
        known = number <= len(rows)
        print(f"{number} of {len(items)}: {item}{' is there' if known else ''}", file=sys.stderr, flush=True)
        if not known:
            rows.append(measure(item))
            write_text(part, json.dumps({**made_by, "rows": rows}) + "\n")
    return rows


def finish(out: Path, result: Mapping[str, Any]) -> None:
    """Writes the file, in whose place nothing unfinished is needed any more."""
    write_text(out, json.dumps(result, indent=1) + "\n")
    _part(out).unlink(missing_ok=True)


def _part(out: Path) -> Path:
    return out.with_name(f"{out.stem}.part.json")


def keep_others(file: Path, settings: Mapping[str, Any]) -> None:
    """Looks, before anything is measured, whether a file holds figures of other settings.

    Raises:
        SystemExit: it does.
    """
    if not file.exists():
        return
    there = json.loads(file.read_text(encoding="utf-8")).get("settings", {})
    others = [f"{key} {there.get(key)}" for key, value in settings.items() if there.get(key) != value]
    if others:
        raise SystemExit(
            f"{file} holds figures of other settings ({', '.join(others)}), which would be lost: give another file by "
            "--out, or delete this one first"
        )
