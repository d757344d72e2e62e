"""Figures in one JSON file: measured and written whole, then printed as a table; or only printed."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netaug_fx.atomic import write_text


def add_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """``--table`` and ``--out``."""
    parser.add_argument("--table", action="store_true", help="run nothing, print what is stored")
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help="the JSON file")


def measured(options: argparse.Namespace, rows: Callable[[], Any], table: Callable[[dict[str, Any]], str]) -> None:
    """Measures unless only the table is wanted, writes the file, and prints the table.

    Args:
        options: The command line; all of it but ``--table`` and ``--out`` is written along.
        rows: Measures.
        table: Makes the table of what the file holds: ``settings``, ``torch``, ``load`` and ``rows``.

    Raises:
        SystemExit: the table is wanted, and nothing is there.
    """
    if not options.table:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        settings = {key: value for key, value in vars(options).items() if key not in ("table", "out")}
        facts = {"settings": settings, "torch": importlib.metadata.version("torch"), "load": load}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json.dumps({**facts, "rows": rows()}, indent=1) + "\n")
    if not options.out.exists():
        raise SystemExit(f"{options.out} is not there; leave --table out to make it")
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))
