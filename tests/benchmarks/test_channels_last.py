"""The benchmark of memory orders: a run on the smallest net, and what is printed of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import channels_last


def test_a_run_measures_each_net_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "channels_last.json"
    words = ["--nets", "digits_net", "--resolution", "8", "--batch-size", "4", "--repetitions", "2"]
    channels_last.main([*words, "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    orders = (f"{what} torch.{order}" for what in ("plain", "step") for order in ("contiguous_format", "channels_last"))
    assert {name: len(times) for name, times in row["seconds"].items()} == dict.fromkeys(orders, 2)
    for what in ("plain", "step"):
        least, *_, most = sorted(
            last / usual
            for last, usual in zip(
                row["seconds"][f"{what} torch.channels_last"],
                row["seconds"][f"{what} torch.contiguous_format"],
                strict=True,
            )
        )
        assert least <= row[what]["median"] <= most
    assert capsys.readouterr().out.count("| `digits_net` |") == 1
