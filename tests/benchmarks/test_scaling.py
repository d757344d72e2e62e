"""The scaling benchmark: exponents of made-up figures, and a whole run on the smallest nets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import scaling


def test_exponents_are_slopes_of_the_larger_half() -> None:
    rows = [{"depth": float(d), "augment_s": 5.0 if d < 8 else d**1.5} for d in (2, 4, 8, 16, 32)]
    assert scaling.exponent(rows[1:], "depth", "augment_s") == pytest.approx(1.5)
    assert scaling.exponent(rows[3:], "depth", "augment_s") == pytest.approx(1.5)
    assert math.isnan(scaling.exponent(rows[:1], "depth", "augment_s"))


def test_the_time_of_augment_is_linear_in_depth() -> None:
    rows = json.loads(scaling.RESULTS.read_text(encoding="utf-8"))["rows"]
    deep = [row for row in rows if row["sweep"] == "depth"]
    assert [row["depth"] for row in deep] == list(scaling.DEPTHS)
    assert scaling.exponent(deep, "depth", "augment_s") <= scaling.DEPTH_GOAL


def test_a_run_measures_each_point_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "scaling.json"
    words = ["--depths", "14", "8", "--widths", "1", "2", "--ratios", "1.5", "2", "--repetitions", "1"]
    scaling.main([*words, "--out", str(out)])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    rows = {sweep: [row for row in result["rows"] if row["sweep"] == sweep] for sweep in ("depth", "width", "ratio")}
    assert [row["depth"] for row in rows["depth"]] == [8, 14]
    assert [row["ratio"] for row in rows["ratio"]] == [1.5, 2.0]
    narrow, wide = rows["width"]
    assert 3 < wide["held"] / narrow["held"] < 4.1
    assert wide["pass_bytes"] > narrow["pass_bytes"]
    assert printed.count("| exponent |") == 3
    scaling.main(["--table", "--out", str(out)])
    assert capsys.readouterr().out in printed
    with pytest.raises(SystemExit, match="is not there"):
        scaling.main(["--table", "--out", str(tmp_path / "none.json")])
