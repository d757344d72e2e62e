"""The table and the plot of the evolving benchmark, on rows made up for the purpose and on those that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import evolve, rows, seeds

ROOT = Path(__file__).parents[2]


def row(seed: int, slim: bool = True) -> dict[str, Any]:
    pairs = [(0.90, 0.10), (0.92, 0.30), (0.94, 0.50), (0.96, 0.95 - seed / 100), (0.97, 0.97)]
    generations = [{"dense": dense, "slim": thin} if slim else {"dense": dense} for dense, thin in pairs]
    macs = {"dense": {"macs": 2_000_000, "params": 3000}}
    return {"name": str(seed), "seed": seed, "generations": generations, "control": {"dense": 0.98}, "macs": macs} | {
        "verified": True
    }


ROWS = [row(seed) for seed in range(3)]


def test_the_table_holds_dense_against_slim_where_they_should_be_level_and_at_the_end() -> None:
    text = evolve.table(ROWS)
    assert "| 1 | 90.00 ± 0.00 | 10.00 ± 0.00 | 80.00 ± 0.00 |" in text
    assert "Dense net against the slim one in generation 4: +2.00 points (95 % interval" in text
    assert "Dense net against the slim one in generation 5: +0.00 points at every seed." in text
    assert "Last generation against the first: +7.00 points at every seed." in text
    assert "Last generation against the control: -1.00 points at every seed." in text
    assert "3 seeds; dense net 2.00M MACs, 3,000 parameters; verified: 3 of 3." in text


def test_single_weights_have_no_slim_net_to_hold_against() -> None:
    text = evolve.table([row(seed, slim=False) for seed in range(2)])
    assert "| 1 | 90.00 ± 0.00 |  |  |" in text
    assert "slim one" not in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    evolve.draw(ROWS, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_the_rows_that_were_measured_are_found_and_said_to_be_of_earlier_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evolve.jsonl"
    out.write_bytes((ROOT / "benchmarks/results/evolve.jsonl").read_bytes())
    evolve.main(["--table", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "5 seeds" in printed
    assert "Measured by an earlier version of the code: seeds 0, 1, 2, 3, 4" in printed
    before = rows.read(out).keys()
    monkeypatch.setattr(evolve, "measure", lambda config, folder: row(config.seed))
    evolve.main(["--seeds", "2", "--epochs", "1", "--out", str(out)])
    assert "earlier version" not in capsys.readouterr().out
    assert [each["code"] for name, each in rows.read(out).items() if name not in before] == [seeds.code_version()] * 2
    with pytest.raises(SystemExit, match="--train-part between 0 and 1"):
        evolve.main(["--train-part", "1.5", "--out", str(out)])
