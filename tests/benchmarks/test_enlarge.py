"""The table and the plot of the enlarging benchmark, on rows made up for the purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import enlarge
from benchmarks.seeds import paired, run_in, spread


def row(seed: int, **accuracies: float) -> dict[str, Any]:
    nets = {
        name: {"accuracy": value, "macs": 400_000 + seed, "params": 2000, "resolution": 8}
        for name, value in accuracies.items()
    }
    start = {"move": "", "macs": 100_000, "resolution": 8, "score": None, "by_size": {"full size": 1e5}}
    path = [start, start | {"move": "depth of a", "score": 0.9}, start | {"move": "resolution", "score": 0.91}]
    facts = {"path": path, "nets": nets, "search_seconds": 50.0, "seconds": {"enlarged": 10.0}, "verified": True}
    return {"name": str(seed), "seed": seed, **facts}


ROWS = [row(seed, enlarged=0.9 + seed / 100, width=0.88, compound=0.9, original=0.8) for seed in range(3)]


def test_the_table_pairs_by_seed_and_counts_what_was_accepted() -> None:
    text = enlarge.table(ROWS)
    assert "| greedy enlarging | 91.00 ± 1.00 | 0.40 ± 0.00 | 2.00 ± 0.00 | 8.00 ± 0.00 |" in text
    assert "against all widths by one factor: +3.00 points" in text
    assert "against compound scaling: +1.00 points" in text
    assert "Accepted: depth 3 times, resolution 3 times." in text
    assert "3 seeds, 1.0 minutes of training each; verified: 3 of 3." in text
    assert "one seed" in enlarge.table(ROWS[:1])


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    enlarge.draw(ROWS, tmp_path / "plot.svg")
    assert "the path of seed 0" in (tmp_path / "plot.svg").read_text()


def test_rows_are_found_again_by_what_decides_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[int] = []

    def measure(config: Any, folder: Path) -> dict[str, Any]:
        measured.append(config.seed)
        assert not folder.exists()
        folder.mkdir(parents=True)
        return ROWS[config.seed]

    monkeypatch.setattr(enlarge, "measure", measure)
    out = tmp_path / "rows.jsonl"
    for words in (["--seeds", "2"], ["--seeds", "3"], ["--seeds", "3", "--jobs", "2"], ["--seeds", "3", "--table"]):
        enlarge.main([*words, "--out", str(out), "--cache", str(tmp_path / "cache")])
    assert not list((tmp_path / "cache").iterdir())
    assert measured == [0, 1, 2]
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 1, 2]
    assert out.with_suffix(".svg").exists()
    with pytest.raises(SystemExit, match="no rows of these settings"):
        enlarge.main(["--table", "--times", "3", "--out", str(out)])
    with pytest.raises(SystemExit, match="--seeds must be at least 1"):
        enlarge.main(["--seeds", "0", "--out", str(out)])
    assert "3 seeds" in capsys.readouterr().out


def test_a_seed_that_was_stopped_goes_on(tmp_path: Path) -> None:
    called: list[str] = []

    class Runs:
        @staticmethod
        def start(_config: Any, folder: Path) -> Path:
            called.append("start")
            folder.mkdir()
            (folder / "config.yaml").touch()
            raise KeyboardInterrupt

        @staticmethod
        def resume(folder: Path) -> Path:
            called.append("resume")
            (folder / "report.json").write_text('{"done": true}')
            return folder

    config = enlarge.settings(enlarge.parser().parse_args([]), 0)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "run", Runs, config)
    assert run_in(tmp_path / "run", Runs, config) == {"done": True}
    assert called == ["start", "resume"]


def test_spread_and_paired_say_what_few_seeds_can_tell() -> None:
    assert spread(np.array([1.0, 3.0])) == "2.00 ± 1.41"
    assert spread(np.array([1.0])) == "1.00"
    assert paired(np.array([1.0, 1.0])) == "+1.00 points at every seed"
    assert paired(np.array([0.5])) == "+0.50 points, one seed"
    assert "p = " in paired(np.array([0.0, 1.0, 2.0]))
