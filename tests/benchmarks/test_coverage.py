"""Coverage: its questions can be failed, its runs resume, and its tables say what does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import coverage
from benchmarks.coverage_check import check_net, smaller_inputs
from benchmarks.coverage_table import NOT_ASKED, NOT_PROVEN, is_wrong, summary
from benchmarks.zoos import Net, random_nets
from netaug_fx.assembly import assemble
from netaug_fx.passes.rules import RULES
from netaug_fx.supernet import Control

# -- the questions -----------------------------------------------------------------------------------------------------


class Rolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.mix(x.roll(2, 1)).mean((2, 3)))  # type: ignore[no-any-return]


class Roll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(2, 1)


def net_of(model: nn.Module, *shape: int) -> Net:
    return Net("net", "family", lambda: model, lambda _model: ((torch.randn(2, *shape),), {}))


def test_a_net_that_holds_everything_counts(tmp_path: Path) -> None:
    row = check_net(net_of(Rolled(), 3, 8, 8), tmp_path)
    assert row["checks"] == dict.fromkeys(("target", "maps", "step", "extract", "macs", "widest", "onnx"), "ok")
    assert row["counted"]
    assert row["groups"] == 3, "the roll cuts the stem's channels in two"
    assert row["mixing"] > 0
    assert row["share_of_weights"] == row["share_of_macs"] == 1.0


def test_a_wrong_index_map_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that takes a roll for nothing, and a check at augment that looks away."""
    monkeypatch.setitem(RULES, "aten::roll", lambda ctx, a: ctx.dims(a.input))
    monkeypatch.setattr("netaug_fx.api.check", lambda *args, **kwargs: {})
    row = check_net(net_of(Rolled(), 3, 8, 8))
    assert not row["counted"]
    assert "apart at the widest" in row["checks"]["maps"]
    assert row["checks"]["onnx"] == NOT_ASKED


def test_smaller_weights_excuse_no_wrong_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net whose rounding grows is asked again with halved weights, in which a deep plain chain would go silent."""
    monkeypatch.setitem(RULES, "aten::roll", lambda ctx, a: ctx.dims(a.input))
    monkeypatch.setattr("netaug_fx.api.check", lambda *args, **kwargs: {})
    layers = [layer for _ in range(24) for layer in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    chain = nn.Sequential(nn.Conv2d(3, 6, 1), Roll(), *layers, nn.Flatten(), nn.Linear(6 * 64, 2))
    row = check_net(net_of(chain, 3, 8, 8))
    assert not row["counted"]
    assert row["scale_of_weights"] == 1.0


def test_gradients_that_never_come_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def assembled_without_gradients(*args: Any) -> Tensor:
        return assemble(*args).detach()

    monkeypatch.setattr("netaug_fx.elastic.assemble", assembled_without_gradients)
    row = check_net(net_of(Rolled(), 3, 8, 8))
    assert "step" in row["checks"]
    assert row["checks"]["step"] != "ok"
    assert is_wrong(row)


def test_an_extra_channel_that_a_rectifier_silences_is_no_fault() -> None:
    row = check_net(random_nets.net("02583"))
    assert row["groups"] == 1
    assert row["counted"], row["checks"]


def test_widths_that_stay_behind_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Control.as_widths

    def one_group(self: Control, widths: Any) -> Any:
        return whole(self, dict(list(widths.items())[:1]))

    monkeypatch.setattr(Control, "as_widths", one_group)
    row = check_net(net_of(Rolled(), 3, 8, 8))
    assert "at the widest" in row["checks"]["widest"]


def test_what_does_not_fit_the_memory_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def too_large(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("too large")

    monkeypatch.setattr("torch.export.export", too_large)
    with pytest.raises(MemoryError):
        check_net(net_of(Rolled(), 3, 8, 8), tmp_path)


def test_extra_channels_that_reach_no_output_prove_nothing() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) * 0 + x.mean()  # type: ignore[no-any-return]

    row = check_net(net_of(Silent(), 3))
    assert row["checks"]["maps"] == NOT_PROVEN
    assert not row["counted"]
    assert not is_wrong(row)


def test_a_net_that_cannot_grow_is_refused_with_its_reason() -> None:
    row = check_net(net_of(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), 3))
    assert not row["counted"]
    assert row["refused"].startswith("PlanError: nothing in this model can be widened")


def test_images_are_made_smaller_only_where_the_same_operators_run() -> None:
    def size(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(smaller_inputs(model, ((torch.randn(2, *shape),), {}))[0][0].shape[1:])

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while x.shape[-1] > 50:
                x = nn.functional.max_pool2d(x, 2)
            return x

    assert size(Rolled(), (3, 224, 224)) == (3, 64, 64)
    assert size(Halves(), (3, 224, 224)) == (3, 224, 224), "three poolings; 128 has two, 192 two"
    assert size(nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 2)), (3, 96, 96)) == (3, 96, 96)
    assert size(Rolled(), (3, 32, 32)) == (3, 32, 32)


# -- running many ------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    asked = ["--zoo", "random", "--names", "0000[0-2]", "--out", str(out), "--no-onnx"]
    coverage.main([*asked, "--seconds", "0.001"])
    assert {row["name"] for row in rows_of(out)} == {"00000", "00001", "00002"}
    assert all(row["crashed"] == "took longer than 0.001 seconds" for row in rows_of(out))
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]) + '{"name": "cut sh')
    coverage.main(asked)
    assert [row["counted"] for row in rows_of(out)] == [False, False, True], "only what was missing is run"
    coverage.main([*asked, "--retry"])
    assert all(row["counted"] for row in rows_of(out))
    before = out.read_text()
    coverage.main(asked)
    assert out.read_text() == before
    older = before.replace(rows_of(out)[0]["versions"]["code"], "0" * 12)
    out.write_text(older)
    coverage.main([*asked, "--keep-older"])
    assert out.read_text() == older
    coverage.main(asked)
    assert all(row["versions"]["code"] != "0" * 12 for row in rows_of(out)), "rows of other code are run again"
    coverage.main(["--zoo", "random", "--names", "00000", "--out", str(out)])
    assert rows_of(out)[0]["checks"]["onnx"] == "ok", "a row that was asked less is not done"
    assert "| all | 3 | 3 (100.0%) | 0 | 0 | 0 | 0 |" in capsys.readouterr().out


def test_bad_requests_are_refused_before_anything_runs(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit, match="matches none of the 5000 nets of random"):
        coverage.main(["--zoo", "random", "--names", "resnet*", "--out", str(out)])
    with pytest.raises(SystemExit, match="must be positive"):
        coverage.main(["--zoo", "random", "--jobs", "0", "--out", str(out)])
    assert not out.exists()


def test_the_table_tells_the_refused_from_the_wrong() -> None:
    rows = [
        {"name": "a", "family": "f", "counted": True, "checks": {"onnx": "n/a: x"}, "share_of_weights": 1.0},
        {"name": "b", "family": "f", "counted": False, "refused": "PlanError: nothing"},
        {"name": "c", "family": "f", "counted": False, "checks": {"maps": "outputs apart", "onnx": "ok"}},
        {"name": "d", "family": "g", "counted": False, "crashed": "took longer"},
        {"name": "e", "family": "g", "counted": False, "checks": {"maps": NOT_PROVEN, "target": "ok"}, "heard": 0.5},
    ]
    table = summary(rows)
    assert "| `f` | 3 | 1 | 1 | 1 | 0 | 0 | 0.0% | 0.0% | - | 1 |" in table
    assert "| `g` | 2 | 0 | 0 | 0 | 1 | 1 | 0.0% | 0.0% | 50.0% | 0 |" in table
    assert "| all | 5 | 1 (20.0%) | 1 | 1 | 1 | 1 |" in table
    failed = [
        "- `b`: PlanError: nothing",
        "- `c`: maps: outputs apart",
        "- `d`: took longer",
        f"- `e`: maps: {NOT_PROVEN}",
    ]
    assert table.splitlines()[-4:] == failed
