"""Rows of long benchmarks: one JSON line a net, added as nets finish, so that a run can go on where it stopped."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from netaug_fx.atomic import write_text

ROOT = Path(__file__).parent.parent

# Take no part in augment, extract and verify.
_NOT_MEASURED = (
    "netaug_fx/__init__.py",
    "netaug_fx/calibration.py",
    "netaug_fx/candidates.py",
    "netaug_fx/cli.py",
    "netaug_fx/distillation.py",
    "netaug_fx/enlargement.py",
    "netaug_fx/evolution.py",
    "netaug_fx/inspection.py",
    "netaug_fx/journal.py",
    "netaug_fx/resetting.py",
    "netaug_fx/scaling.py",
    "netaug_fx/seeded.py",
    "netaug_fx/sorting.py",
    "netaug_fx/step.py",
    "netaug_fx/workers.py",
    "passes/deepen.py",
    "passes/fake_macs.py",
    "passes/grow.py",
    "passes/probe.py",
    "passes/replicate.py",
    "passes/resize.py",
    "passes/stages.py",
)

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """The newest row of each net, none if there is no file; a line that a kill cut short is left out."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["name"]] = row
    return rows


def add(path: Path, row: Row) -> None:
    """Adds one row as one whole line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes the file anew, by name, whole or not at all."""
    lines = (json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: str(row["name"])))
    write_text(path, "".join(lines))


def code_version(*measuring: str) -> str:
    """A hash of the compiler and of the files that measure it, named from the repository's root; globs are allowed.

    What is written for readers alone (comments, docstrings, layout) does not count.
    """
    compiler = {*(ROOT / "passes").rglob("*.py"), *(ROOT / "netaug_fx").glob("*.py")}
    compiler -= {ROOT / name for name in _NOT_MEASURED}
    digest = hashlib.sha256()
    for path in sorted(compiler | {path for name in measuring for path in ROOT.glob(name)}):
        digest.update(_program(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def _program(source: str) -> str:
    """What Python runs of a source text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
