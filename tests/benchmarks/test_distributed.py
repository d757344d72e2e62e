"""The benchmark of several processes: a whole run on the smallest net."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import distributed


def test_widths_add_no_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "distributed.json"
    words = ["--nets", "digits_net", "--resolution", "8", "--batch-size", "8", "--repetitions", "2"]
    distributed.main([*words, "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["netaug"]["messages"] == row["plain"]["messages"]
    for kind in ("plain", "netaug"):  # each gradient is sent once a step
        assert row[kind]["bytes"] == row[kind]["gradients"]
        assert len(row[kind]["seconds"]) == 2
    assert "| `digits_net` | 4 |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["distributed.json"]
    with pytest.raises(SystemExit, match="at least two images"):
        distributed.main(["--batch-size", "2", "--out", str(out)])
