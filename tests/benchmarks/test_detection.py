"""The detection benchmark: a pipeline of a few steps; table, savings and plot on rows made up for the purpose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import detection
from benchmarks.rows import read


def options(*words: str) -> argparse.Namespace:
    return detection.parser().parse_args(words)


def row(method: str, side: int, seed: int, found: float) -> dict[str, Any]:
    return {"method": method, "side": side, "seed": seed, "map": found, "map_50": 2 * found, "macs": side * side * 100}


ROWS = [
    row(method, side, seed, found + (0.05 if method == "netaug" else 0) + seed / 1000 * (1 + (method == "netaug")))
    for method in ("baseline", "netaug")
    for side, found in ((64, 0.1), (128, 0.2))
    for seed in range(3)
]


def test_the_table_pairs_by_seed() -> None:
    asked = options("--sides", "64", "128", "--methods", "baseline", "netaug")
    text = detection.table(ROWS, asked)
    assert "| 64 | 0.41M | baseline | 3 | 10.10 ± 0.10 | 20.20 ± 0.20 |  |" in text
    assert "| 128 | 1.64M | netaug | 3 | 25.20 ± 0.20 | 50.40 ± 0.40 | +5.10 points (95 % interval" in text
    assert "1500 steps of 16 scenes, after 1500 of 128 glyphs." in text
    # of the two curves of means, only the first point of NetAug's lies between the baseline's: at half of its way
    assert (
        "`netaug`: multiply-adds saved at equal precision 51% on average (51%); by the curves of single seeds" in text
    )


def test_a_seed_that_is_missing_is_not_counted() -> None:
    asked = options("--sides", "64", "128", "--methods", "baseline", "netaug")
    left = [each for each in ROWS if (each["seed"], each["side"], each["method"]) != (2, 128, "netaug")]
    assert "| 128 | 1.64M | netaug | 2 |" in detection.table(left, asked)


def test_savings_are_read_off_the_baselines_curve() -> None:
    base, other = [(100.0, 0.1), (400.0, 0.3)], [(100.0, 0.2), (150.0, 0.1), (400.0, 0.4)]
    # half way in precision is half way in the logarithm: 200
    assert detection.savings(base, other) == pytest.approx([0.5, -0.5])
    assert detection.savings(base[:1], other) == []
    assert detection.savings([(100.0, 0.3), (400.0, 0.1)], other) == [], "a curve that falls says nothing"


def test_a_pipeline_of_a_few_steps_goes_from_glyphs_to_scenes(tmp_path: Path) -> None:
    words = ["--sides", "32", "48", "--seeds", "1", "--methods", "baseline", "netaug twice", "--jobs", "1"]
    words += [
        "--glyph-steps",
        "5",
        "--steps",
        "5",
        "--val-images",
        "20",
        "--out",
        str(tmp_path / "rows.jsonl"),
        "--cache",
        str(tmp_path),
    ]
    detection.main(words)
    rows = list(read(tmp_path / "rows.jsonl").values())
    assert [(r["task"], r["method"], r["side"], r["steps"]) for r in rows] == [
        ("glyphs", "baseline", 48, 5),
        ("glyphs", "netaug", 48, 5),
        *(("scenes", method, side, 5) for side in (32, 48) for method in ("baseline", "netaug twice")),
    ]
    assert rows[2]["macs"] < rows[4]["macs"]
    assert all(0 <= r["map"] <= 1 for r in rows[2:])
    assert "mean average precision over multiply-adds" in (tmp_path / "rows.svg").read_text()
    before = read(tmp_path / "rows.jsonl")
    detection.main([*words, "--table"])
    detection.main(words)
    assert read(tmp_path / "rows.jsonl") == before, "what has a row is not run again"
    assert not list((tmp_path / "cells").iterdir())


def test_a_table_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no rows of these settings"):
        detection.main(["--table", "--out", str(tmp_path / "rows.jsonl")])
