"""Which changes make measured rows stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import rows

PROGRAM = 'def half(x):\n    """A docstring."""\n    return x / 2\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("passes/rules", "netaug_fx"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("passes/infer.py", "passes/rules/shape.py", "netaug_fx/api.py", "netaug_fx/step.py", "measuring.py"):
        (tmp_path / name).write_text(PROGRAM)
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["passes/infer.py", "passes/rules/shape.py", "netaug_fx/api.py", "measuring.py"])
def test_another_program_is_another_version(project: Path, name: str) -> None:
    before = rows.code_version("measuring.py")
    (project / name).write_text(PROGRAM.replace("2", "3"))
    assert rows.code_version("measuring.py") != before


@pytest.mark.parametrize(
    "text",
    [
        PROGRAM.replace("A docstring", "Another docstring"),
        PROGRAM.replace("x / 2", "x / 2  # why"),
        PROGRAM.replace('    """A docstring."""\n', ""),
        PROGRAM.replace("x / 2", "(\n        x / 2\n    )"),
    ],
)
def test_what_only_readers_see_changes_nothing(project: Path, text: str) -> None:
    before = rows.code_version()
    (project / "passes/infer.py").write_text(text)
    assert rows.code_version() == before


def test_code_that_takes_no_part_changes_nothing(project: Path) -> None:
    before = rows.code_version()
    (project / "netaug_fx/step.py").write_text(PROGRAM.replace("2", "3"))
    assert rows.code_version() == before
