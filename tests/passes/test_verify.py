"""Verify: passes what is equal, and each check fails on purpose for what is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from netaug_fx import augment, extract
from netaug_fx.errors import ExportError, InputError, VerificationError
from netaug_fx.passes import compare_outputs
from netaug_fx.passes import verify as verify_module
from netaug_fx.passes.compare_outputs import check_runtime
from netaug_fx.passes.onnx_export import Capture, capture, write_onnx
from netaug_fx.passes.report import Check, Report
from netaug_fx.passes.verify import verify

CHECKS = ["class", "state_dict", "modules", "forward", "graph", "parameters", "macs"]
ONNX_CHECKS = ["onnx structure", "onnx runtime", "onnx argmax"]


class Net(nn.Module):
    """A residual net whose layers tests can swap for others."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        nn.init.normal_(self.norm.bias)  # so that it matters on which side of an activation it is
        self.act: nn.Module = nn.ReLU6(inplace=True)
        self.body: nn.Module = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        return self.head((x + self.body(x)).mean((2, 3)))


X = torch.rand(1, 3, 8, 8)


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def changed(change: Callable[[Net], Any]) -> Net:
    torch.manual_seed(1)
    net = Net()
    change(net)
    return net


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("verified")
    return verify(Net(), Net().train(), X, folder=folder), folder


def test_equal_nets_with_other_weights_pass(equal: tuple[Report, Path]) -> None:
    report, folder = equal
    assert failed(report) == set()
    assert report.passed
    assert [check.name for check in report.checks] == CHECKS + ONNX_CHECKS
    assert all(check.detail for check in report.checks)
    assert report.macs == 16 * 8 * 27 + 16 * 8 * 4 * 9 + 32
    assert report.params == sum(parameter.numel() for parameter in Net().parameters())
    assert {path.name for path in folder.iterdir()} == {"tiny.onnx", "original.onnx"}
    assert "torch.export" in report["graph"].detail
    assert "4 runs (batch 1, batch 3)" in report["onnx runtime"].detail
    assert "bit for bit" in report["forward"].detail
    report.raise_if_failed()


def test_the_report_reads_and_serialises(equal: tuple[Report, Path]) -> None:
    report, _ = equal
    lines = str(report).splitlines()
    assert lines[-1] == f"Net: verified; {report.params:,} parameters, {report.macs:,} MACs"
    column = len("FAILED  onnx structure  ")
    details = [line[column:] for line in lines if line.startswith("ok")]
    assert all(check.detail.startswith(detail) for check, detail in zip(report.checks, details, strict=True))
    stored = json.loads(report.to_json())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert stored["passed"] is True
    assert [check["name"] for check in stored["checks"]] == CHECKS + ONNX_CHECKS
    with pytest.raises(KeyError, match="no check 'nothing'"):
        report["nothing"]


def test_both_are_exported_and_their_files_left_where_asked(tmp_path: Path) -> None:
    report = verify(Net(), Net(), X, folder=tmp_path)
    assert report.passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.onnx", "tiny.onnx"]
    assert "ONNX files of both: isomorphic" in report["onnx structure"].detail


# (name, change to the tiny net, checks that must fail, words that must be in the report)
CHANGES: list[tuple[str, Callable[[Net], Any], set[str], str]] = [
    (
        "kernel",
        lambda net: setattr(net, "body", nn.Conv2d(8, 8, 5, padding=2, groups=2)),
        {"state_dict", "modules", "forward", "graph", "parameters", "macs"},
        "body.weight is (8, 4, 5, 5)",
    ),
    (
        "extra layer",
        lambda net: setattr(net, "act", nn.Sequential(nn.ReLU6(inplace=True), nn.Sigmoid())),
        {"modules", "forward", "graph"},
        "act.1 is new",
    ),
    (
        "stride",
        lambda net: setattr(net.stem, "stride", (1, 1)),
        {"modules", "forward", "graph", "macs"},
        "stride=(1, 1)",
    ),
    ("epsilon", lambda net: setattr(net.norm, "eps", 1e-3), {"modules", "forward", "graph"}, "eps=0.001"),
    ("activation", lambda net: setattr(net, "act", nn.Hardtanh(0.0, 0.1)), {"modules", "forward", "graph"}, "act"),
    ("dtype", lambda net: net.double(), {"state_dict", "forward", "graph"}, "torch.float64"),
    (
        "missing bias",
        lambda net: setattr(net, "head", nn.Linear(8, 4, bias=False)),
        {"state_dict", "modules", "forward", "graph", "parameters"},
        "head.bias is missing",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected", "words"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_changed_net_fails(change: Callable[[Net], Any], expected: set[str], words: str) -> None:
    report = verify(changed(change), Net(), X, onnx=False)
    assert expected <= failed(report)
    assert [check.name for check in report.checks] == CHECKS
    assert words in report.to_json()
    assert "NOT verified" in str(report)
    with pytest.raises(VerificationError) as caught:
        report.raise_if_failed()
    assert all(name in str(caught.value) for name in expected)


class Swapped(Net):
    """The same layers in another order."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.act(self.stem(x)))
        return self.head((x + self.body(x)).mean((2, 3)))


def test_a_subclass_with_a_swapped_order_fails() -> None:
    report = verify(Swapped(), Net(), X)
    assert {"class", "forward", "graph", "onnx structure"} <= failed(report)
    assert "Swapped" in report["class"].actual
    assert "batch_norm" in report["graph"].detail
    assert report["state_dict"].passed
    assert report["onnx runtime"].passed  # its file is a faithful one, of another net


def test_a_forward_replaced_on_the_instance_fails() -> None:
    tiny = Net()
    tiny.forward = lambda x: Net.forward(tiny, x) * 1.5  # type: ignore[method-assign,assignment]
    assert failed(verify(tiny, Net(), X, onnx=False)) == {"forward", "graph"}


def test_a_wrong_mac_count_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    true_count = verify_module.count

    def count(model: nn.Module, inputs: Any) -> Any:
        counted = true_count(model, inputs)
        return replace(counted, torch_macs=counted.torch_macs + 1) if isinstance(model, Swapped) else counted

    monkeypatch.setattr(verify_module, "count", count)
    report = verify(Swapped(), Net(), X, onnx=False)
    assert not report["macs"].passed
    assert report["macs"].expected != report["macs"].actual
    assert verify(Net(), Net(), X, onnx=False)["macs"].passed


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Capture, Path]:
    captured = capture(Net(), X)
    return captured, write_onnx(captured, tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.mark.parametrize("shift", ["none", "values", "winner", "shape", "missing"])
def test_a_wrong_onnx_runtime_output_fails(
    exported: tuple[Capture, Path], monkeypatch: pytest.MonkeyPatch, shift: str
) -> None:
    true_run = compare_outputs.run_onnx

    def run(path: Any, inputs: Any) -> list[np.ndarray[Any, Any]]:
        (output,) = true_run(path, inputs)
        wrong = {"none": output, "values": output * 1.01, "winner": output[..., ::-1], "shape": output[..., :2]}
        return [wrong[shift]] if shift in wrong else []

    monkeypatch.setattr(compare_outputs, "run_onnx", run)
    checks = check_runtime(*exported, 1e-4)
    expected = {"none": set(), "values": {"onnx runtime"}}.get(shift, {"onnx runtime", "onnx argmax"})
    assert {check.name for check in checks if not check.passed} == expected
    assert shift == "none" or checks[0].detail.startswith("batch 1, random input 1: ")


def test_an_onnx_runtime_that_does_not_run_fails_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(path: Any, inputs: Any) -> list[np.ndarray[Any, Any]]:
        raise ExportError("no runtime")

    monkeypatch.setattr(compare_outputs, "run_onnx", run)
    report = verify(Net(), Net(), X)
    assert failed(report) == {"onnx runtime", "onnx argmax"}
    assert "could not run: no runtime" in report["onnx argmax"].detail


class Looks(nn.Module):
    """A branch on values: torch.export cannot follow it."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * self.scale if float(y.abs().sum()) >= 0 else y


class Calls(nn.Module):
    """Can be traced, but holds a module that cannot be exported."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.looks = Looks()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.looks(x) * self.scale


def test_an_original_that_does_not_export_is_no_failure() -> None:
    report = verify(Calls(), Calls(), torch.rand(2, 3))
    assert report.passed
    assert "torch.fx graphs of each module" in report["graph"].detail
    for name in ONNX_CHECKS:
        assert report[name].detail.startswith("not applicable: the original model does not export: Calls")
    assert failed(verify(Calls(3.0), Calls(), torch.rand(2, 3))) == {"forward", "graph"}


def test_only_the_tiny_net_does_not_export() -> None:
    tiny, model = Net(), Net()
    tiny.forward = lambda x: Net.forward(tiny, x) if float(x.sum()) > -1e9 else x  # type: ignore[method-assign,assignment]
    report = verify(tiny, model, X)
    assert {"graph", *ONNX_CHECKS} <= failed(report)
    assert report["graph"].detail.startswith("only the tiny model cannot be exported")
    assert report["onnx runtime"].detail.startswith("could not run: Net cannot be captured")


@dataclass
class Pair:
    left: Tensor
    right: Tensor


class Multi(nn.Module):
    """Several inputs, integers among them; several outputs of every kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.fc = nn.Embedding(10, 6), nn.Linear(6, 5)

    def forward(self, tokens: Tensor, extra: dict[str, Tensor], flip: bool = False) -> Any:
        a = self.fc(self.embed(tokens)).mean(1)
        b = a + extra["bias"]
        return {"tuple": (a, b), "dict": {"a": a, "b": [b]}, "dataclass": Pair(a, b)}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_several_inputs_and_outputs(kind: str) -> None:
    tokens, extra = torch.randint(0, 10, (2, 7)), {"bias": torch.rand(2, 5)}
    report = verify(Multi(kind), Multi(kind), {"tokens": tokens, "extra": extra, "flip": True})
    assert report.passed, str(report)
    assert verify(Multi(kind), Multi(kind), (tokens, extra), onnx=False).passed


def test_a_batch_of_one_that_is_squeezed_away() -> None:
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).squeeze()

    report = verify(Squeezes(), Squeezes(), X)
    assert report.passed, str(report)
    assert "batch 2" in report["onnx runtime"].detail


def test_a_fixed_batch() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(2, 12))

    report = verify(Fixed(), Fixed(), torch.rand(2, 3, 4))
    assert report.passed, str(report)
    assert "fixed batch" in report["graph"].detail


def test_inputs_are_found_where_none_are_given() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    report = verify(copy.deepcopy(net), net, onnx=False)
    assert report.passed
    assert report.macs == 36


def test_recurrent_shared_and_graph_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)
            self.fc = nn.Linear(4, 4)
            self.again = self.fc

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.fc(self.lstm(x)[0]))

    tied = Tied()
    flat_before = list(tied.lstm._flat_weights)
    assert verify(Tied(), tied, torch.rand(2, 3, 4), onnx=False).passed
    assert all(a is b for a, b in zip(tied.lstm._flat_weights, flat_before, strict=True))
    traced = fx.symbolic_trace(Net().eval())
    assert verify(copy.deepcopy(traced), traced, X, onnx=False).passed


def test_the_models_are_left_as_they_were() -> None:
    tiny, model = Net().train(), Net().train()
    model.norm.eval()
    tensors = [(t, t.clone()) for net in (tiny, model) for t in (*net.parameters(), *net.buffers())]
    random_state = torch.get_rng_state()
    verify(tiny, model, torch.ones(1, 3, 8, 8), onnx=False)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert tiny.training
    assert tiny.norm.training
    assert not model.norm.training
    for (former, value), tensor in zip(
        tensors, (t for net in (tiny, model) for t in (*net.parameters(), *net.buffers())), strict=True
    ):
        assert tensor is former
        assert torch.equal(tensor, value)


def test_bad_arguments() -> None:
    supernet = augment(Net(), example_inputs=X)
    with pytest.raises(InputError, match=r"tiny is a supernet .* netaug_fx\.extract\(supernet\)"):
        verify(supernet, Net(), X)
    with pytest.raises(InputError, match="model is a supernet"):
        verify(Net(), supernet, X)
    with pytest.raises(InputError, match=r"tiny: expected a torch\.nn\.Module, found str"):
        verify("tiny", Net(), X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the original Net does not run on them"):
        verify(Net(), Net(), torch.rand(1, 5, 8, 8))
    with pytest.raises(InputError, match="tolerance=-1"):
        verify(Net(), Net(), X, tolerance=-1)


def test_failed_checks_wrap_in_the_table() -> None:
    check = Check("graph", False, "why " * 60, "one thing", "another")
    table = str(Report("Net", (check,), None, 5))
    assert max(len(line) for line in table.splitlines()) <= 120
    assert table.startswith("FAILED  graph  expected one thing, found another; why why")
    assert table.endswith("Net: NOT verified; 5 parameters, unknown MACs")


class Bags(nn.Module):
    """Its first argument is one long list of tokens, which has no batch to be varied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(tokens, offsets)).relu())  # type: ignore[no-any-return]


def test_inputs_whose_first_dimension_is_no_batch_are_taken_as_they_are() -> None:
    model, inputs = Bags(), (torch.randint(20, (9,)), torch.tensor([0, 4]))
    report = verify(extract(augment(model, 2, example_inputs=inputs)), model, inputs)
    passed = {check.name: check.passed for check in report.checks}
    assert len(passed) == 10, "what cannot be asked is reported, never raised"
    assert passed["onnx runtime"]
    assert "the example input" in next(check.detail for check in report.checks if check.name == "onnx runtime")
