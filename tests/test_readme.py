"""The README is run as a reader would run it: every Python block in order, every command line as far as parsing."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from netaug_fx import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text(encoding="utf-8"))


def _shell_lines(program: str) -> list[str]:
    lines = [line for language, text in _blocks() if language == "sh" for line in text.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith(f"{program} ")]


def test_every_python_block_runs_and_prints_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process_group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in process_group.items():  # what torchrun sets
        monkeypatch.setenv(name, value)
    names: dict[str, object] = {"__name__": "readme"}
    printed, compared = "", 0
    for language, text in _blocks():
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "net.py", "exec"), names)
            printed = out.getvalue()
        elif language == "text":
            # the line within the block differs from the line in a file of the reader's
            assert re.sub(r"net\.py:\d+", "net.py", printed) == re.sub(r"net\.py:\d+", "net.py", text)
            compared += 1
    assert compared == 1
    assert type(names["tiny"]).__name__ == "Net"
    assert {path.name for path in tmp_path.iterdir()} == {"supernet.pt", "tiny.pt", "tiny.onnx"}


def test_every_verb_is_shown() -> None:
    shown = {line.split()[1] for line in _shell_lines("netaug-fx")}
    assert shown == {"train", "evolve", "enlarge", "finetune", "inspect", "count", "verify", "export"}


@pytest.mark.parametrize("line", _shell_lines("netaug-fx"))
def test_every_command_line_parses(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that a verb does not have are an error even before ``--help``."""
    _, *words = shlex.split(line)
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--help"])
    assert exit_.value.code == 0
    assert words[0] in capsys.readouterr().out


def test_an_option_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--no-such-option", "--help"])
    assert exit_.value.code == 2


@pytest.mark.parametrize("line", _shell_lines("make"))
def test_every_make_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)
