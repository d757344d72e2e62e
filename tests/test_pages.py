"""Pages of docs are run as a reader would run them: Python blocks in order, command lines as far as parsing."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from netaug_fx import cli
from tests.test_readme import BLOCK

DOCS = Path(__file__).parents[1] / "docs"
LINES = [
    (page.stem, line)
    for page in sorted(DOCS.glob("*.md"))
    for line in re.findall(
        r"^netaug-fx ((?:train|evolve|enlarge|finetune) [^#\n]*?)\s*(?:#.*)?$", page.read_text(), re.M
    )
]


def run_page(name: str) -> tuple[dict[str, Any], str]:
    """What the page's Python blocks leave behind, and what they print."""
    names: dict[str, Any] = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for language, text in BLOCK.findall((DOCS / f"{name}.md").read_text(encoding="utf-8")):
            if language == "python":
                exec(compile(text, "page.py", "exec"), names)
    return names, out.getvalue()


def test_enlarge_grows_to_its_budget() -> None:
    names, printed = run_page("enlarge")
    assert "width of" in printed
    assert names["found"].macs == pytest.approx(200_000, rel=0.05)
    assert isinstance(names["supernet"], type(names["model"]))


def test_a_detector_is_augmented_stepped_and_extracted() -> None:
    names, _ = run_page("detection")
    assert len(names["done"].augmented) == 1
    assert type(names["tiny"]) is type(names["detector"])
    assert len(names["found"]) == 4
    assert all(set(found) == {"boxes", "scores", "labels"} for found in names["found"])


def test_a_compiled_supernet_is_trained_on_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that generates no code; what compiling does is tested in ``netaug_fx/test_compile.py``."""
    whole, counted = torch.compile, CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", lambda net: whole(net, backend=counted, fullgraph=True))
    with torch._dynamo.config.patch(recompile_limit=8):  # put back what the page sets
        names, _ = run_page("speed")
    torch._dynamo.reset()
    assert type(names["tiny"]) is type(names["model"])
    assert 1 < counted.frame_count <= 1 + names["POOL"] < len(names["loader"]) + 1


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_line_parses(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*shlex.split(line), "--help"])
    assert stopped.value.code == 0, page
    assert line.split()[0] in capsys.readouterr().out
