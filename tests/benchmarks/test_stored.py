"""Figures of the timing benchmarks: what is there is not lost to a trial, and bad options are named."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import channels_last, compiled, distributed, overhead, scaling, stored
from benchmarks.rows import ROOT

Main = Callable[[list[str]], None]
MODULES = (channels_last, compiled, distributed, overhead, scaling)
MAINS: dict[str, Main] = {module.__name__.removeprefix("benchmarks."): module.main for module in MODULES}
README = ROOT / "benchmarks" / "README.md"


@pytest.mark.parametrize("name", MAINS)
def test_a_trial_does_not_replace_the_figures_of_other_settings(name: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    out.write_bytes((overhead.RESULTS.parent / f"{name}.json").read_bytes())
    before = out.read_bytes()
    with pytest.raises(SystemExit, match=r"holds figures of other settings .*repetitions \d+.*--out, or delete"):
        MAINS[name](["--repetitions", "1", "--out", str(out)])
    assert out.read_bytes() == before


PAGES = [
    *(page.read_text(encoding="utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), README)),
    *(text for m in MODULES for text in (m.__doc__, getattr(m, "EPILOG", ""))),
]
DOCUMENTED = sorted(
    {
        (name, " ".join(words.split()))
        for page in PAGES
        for name, words in re.findall(r"python -m benchmarks\.(\w+)([^#`\n]*)", page.replace("\\\n", " "))
        if name in MAINS
    }
)


@pytest.mark.parametrize(("name", "words"), DOCUMENTED)
def test_documented_commands_lose_no_figures(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not refused either, when somebody runs them."""
    asked: list[tuple[Path, dict[str, Any]]] = []

    def noted(file: Path, settings: dict[str, Any]) -> None:
        asked.append((file, settings))
        raise KeyboardInterrupt

    for module in (stored, overhead):
        monkeypatch.setattr(module, "keep_others", noted)
    monkeypatch.setattr(scaling, "measure", lambda *_: {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.chdir(ROOT)
    with pytest.raises(KeyboardInterrupt):
        MAINS[name](shlex.split(words))
    monkeypatch.undo()
    ((file, settings),) = asked
    stored.keep_others(ROOT / file, settings)


def test_the_same_settings_measure_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(table=False, out=tmp_path / "new" / "figures.json", size=3)
    for value in (1, 2):
        stored.measured(options, ["net"], lambda _, value=value: {"is": value}, lambda result: str(result["rows"]))
    assert capsys.readouterr().out == "[{'is': 1}]\n[{'is': 2}]\n"
    assert json.loads(options.out.read_text())["settings"] == {"size": 3}
    with pytest.raises(SystemExit, match="written by another benchmark"):
        scaling.main(["--table", "--out", str(options.out)])


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(table=False, out=tmp_path / "figures.json", sizes=(1, 2))
    asked: list[str] = []

    def measure(name: str) -> dict[str, str]:
        asked.append(name)
        if asked == ["a", "b"]:
            raise KeyboardInterrupt
        return {"name": name}

    def names(result: dict[str, Any]) -> str:
        return "".join(row["name"] for row in result["rows"])

    def go() -> None:
        stored.measured(options, ["a", "b", "c"], measure, names)

    with pytest.raises(KeyboardInterrupt):
        go()
    assert not options.out.exists()
    go()
    assert asked == ["a", "b", "b", "c"]
    assert capsys.readouterr().out == "abc\n"
    assert list(tmp_path.iterdir()) == [options.out]


def test_rows_of_other_code_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "figures.json"
    asked: list[str] = []

    def measure(name: str) -> dict[str, str]:
        asked.append(name)
        return {"name": name}

    for code in ("old", "old", "new"):
        monkeypatch.setattr(stored, "code_version", lambda *_, code=code: code)
        assert stored.one_by_one(out, {"size": 1}, ["a"], measure) == [{"name": "a"}]
    assert asked == ["a", "a"]


@pytest.mark.parametrize(
    ("name", "words", "text"),
    [
        ("compiled", ["--pool", "0"], "'0' is not a whole number of at least 1"),
        ("compiled", ["--batch-sizes", "0"], "'0' is not a whole number of at least 1"),
        ("channels_last", ["--threads", "no"], "'no' is not a whole number of at least 1"),
        ("distributed", ["--repetitions", "0"], "'0' is not a whole number of at least 1"),
        ("overhead", ["--draws", "-1"], "'-1' is not a whole number of at least 1"),
        ("scaling", ["--depths", "20", "21"], "'21' is not 6n + 2 layers"),
        ("scaling", ["--ratios", "0.5"], "'0.5' is not a number above 1"),
        ("scaling", ["--ratios", "wide"], "'wide' is not a number above 1"),
    ],
)
def test_numbers_that_cannot_be_used_are_named(
    name: str, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        MAINS[name](words)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--backend", "nope"], "--backend nope: there is no such backend; there are .*inductor"),
        (["--backend", "eager", "--mode", "reduce-overhead"], "--mode reduce-overhead is for the backend inductor"),
    ],
)
def test_how_to_compile_is_looked_at_first(words: list[str], text: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=text):
        compiled.main([*words, "--out", str(tmp_path / "none.json")])


def test_the_readme_shows_the_stored_figures() -> None:
    readme = (overhead.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    for module in (channels_last, compiled, distributed, scaling):
        assert module.table(json.loads(module.RESULTS.read_text(encoding="utf-8"))) in readme
