"""docs/enlarge.md is run as a reader would run it: its Python blocks in order, its command lines as far as parsing."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from netaug_fx import cli
from tests.test_readme import BLOCK

PAGE = (Path(__file__).parents[1] / "docs" / "enlarge.md").read_text(encoding="utf-8")
LINES = re.findall(r"^(netaug-fx enlarge.*?)(?:#.*)?$", PAGE, re.MULTILINE)


def test_every_python_block_runs() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for language, text in BLOCK.findall(PAGE):
            if language == "python":
                exec(compile(text, "page.py", "exec"), names)
    assert "width of" in out.getvalue()
    assert names["found"].macs == pytest.approx(200_000, rel=0.05)
    assert isinstance(names["supernet"], type(names["model"]))


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_parses(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*shlex.split(line)[1:], "--help"])
    assert stopped.value.code == 0
    assert "enlarge" in capsys.readouterr().out
