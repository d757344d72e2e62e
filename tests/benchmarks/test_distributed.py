"""The benchmark of several processes: a whole run on the smallest net, and what counts messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import distributed


def test_widths_add_no_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "distributed.json"
    words = ["--nets", "digits_net", "--resolution", "8", "--batch-size", "8", "--repetitions", "2"]
    distributed.main([*words, "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["netaug"]["messages"] == row["fixed_widths"]["messages"] >= row["plain"]["messages"] > 0
    assert all(len(row[kind]["seconds"]) == 2 for kind in ("plain", "netaug"))
    assert "| `digits_net` | 4 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="at least two images"):
        distributed.main(["--batch-size", "2", "--out", str(out)])


def test_all_processes_take_the_same_widths_within_a_round(tmp_path: Path) -> None:
    seen: list[object] = []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        calls = [lambda name=name: seen.append(name) for name in ("alone", "together", "apart")]
        rounds = distributed._in_turns(*calls, seen.append, repetitions=2)
    finally:
        dist.destroy_process_group()
    assert len(rounds) == 2
    numbers, names = seen[::2], seen[1::2]
    assert numbers == [number for number in range(distributed.WARM_ROUNDS + 2) for _ in range(3)]
    assert {tuple(names[at : at + 3]) for at in range(0, len(names), 3)} == {
        ("alone", "together", "apart"),
        ("apart", "together", "alone"),
    }


def test_every_message_counts(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert distributed.collectives(lambda: None) == 0
        assert distributed.collectives(lambda: dist.all_reduce(torch.zeros(3))) == 1
        assert distributed.collectives(lambda: [dist.broadcast(torch.zeros(1), 0) for _ in range(2)]) == 2
    finally:
        dist.destroy_process_group()
