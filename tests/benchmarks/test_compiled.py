"""The benchmark of torch.compile: a whole run on the smallest net, with a backend that generates no code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import compiled


def test_a_run_compiles_the_target_and_each_assignment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compiled.json"
    words = ["--nets", "digits_net", "--resolution", "8", "--batch-sizes", "4", "--pool", "2", "--repetitions", "1"]
    words += ["--channels-last", "--divisor", "4", "--amp"]
    compiled.main([*words, "--backend", "aot_eager", "--out", str(out)])
    torch._dynamo.reset()
    printed = capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert row["graphs"] == 1 + 2
    assert all(row[key]["median"] > 0 for key in ("target", "plain", "step", "least", "slicing"))
    assert "| `digits_net` | 4 |" in printed
    compiled.main(["--table", "--out", str(out)])
    assert capsys.readouterr().out in printed
    with pytest.raises(SystemExit, match="is not there"):
        compiled.main(["--table", "--out", str(tmp_path / "none.json")])


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="there is no CUDA device"):
            compiled.main(["--device", "cuda", "--out", str(tmp_path / "none.json")])
    words = ["--nets", "digits_net", "--resolution", "8", "--backend", "eager", "--pool", "300"]
    with pytest.raises(SystemExit, match="of the assignments differ; give a smaller one"):
        compiled.main([*words, "--out", str(tmp_path / "none.json")])
    assert not (tmp_path / "none.json").exists()


def test_mixed_precision_reads_the_weights_of_each_step() -> None:
    """Autocast around several steps would go on with what it had converted before the first."""
    net, x = torch.nn.Linear(2, 2, bias=False), torch.ones(1, 2)
    loss = compiled.loss_in("cpu", amp=True)
    torch.nn.init.ones_(net.weight)
    before = float(loss(net, x))
    torch.nn.init.constant_(net.weight, 2.0)
    assert (before, float(loss(net, x))) == (4.0, 16.0)
    assert net(x).dtype == torch.float32
