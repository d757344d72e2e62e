"""Values compared for real: a rewritten forward that computes something else is found, and its module named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.api import compile_model
from netaug_fx.elastic import STATE, ForwardSource, ModuleState
from netaug_fx.errors import CheckError
from netaug_fx.passes.check_real import wrong_rewrite
from netaug_fx.passes.observe import observe

INPUTS = ((torch.randn(2, 3, 6, 6),), {})


class Shuffles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape) * 2.0
        return self.norm(x) if self.training else self.norm(x) * 1.5  # type: ignore[no-any-return]


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), Shuffles(), nn.Sequential(nn.ReLU(), Shuffles()), nn.Conv2d(8, 4, 1))


def tampered(supernet: nn.Module, path: str, training: bool, old: str, new: str) -> None:
    state: ModuleState = supernet.get_submodule(path).__dict__[STATE]
    source = state.forwards[training]
    assert old in source.code
    state.forwards[training] = ForwardSource(source.code.replace(old, new), source.names)


def test_right_rewrites_pass() -> None:
    compiled = compile_model(net(), 2, example_inputs=INPUTS[0])
    assert [path for path in ("1", "2.1") if compiled.supernet.get_submodule(path).__dict__[STATE].forwards] == [
        "1",
        "2.1",
    ]
    assert wrong_rewrite(compiled.supernet, compiled.plan.base, compiled.observed, INPUTS) is None


@pytest.mark.parametrize(
    ("path", "training", "old", "new"),
    [
        ("1", False, "1.5", "1.4"),
        ("2.1", False, "1.5", "1.4"),
        ("1", True, "2.0", "-2.0"),
        ("2.1", True, "2.0", "-2.0"),
    ],
)
def test_a_wrong_one_is_named(path: str, training: bool, old: str, new: str) -> None:
    compiled = compile_model(net(), 2, example_inputs=INPUTS[0])
    tampered(compiled.supernet, path, training, old, new)
    assert wrong_rewrite(compiled.supernet, compiled.plan.base, compiled.observed, INPUTS) == path


def test_a_module_whose_rewrite_is_wrong_is_taken_for_opaque(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["1", None])
    monkeypatch.setattr("netaug_fx.api.wrong_rewrite", lambda *_: next(answers))
    found = netaug_fx.inspect(net(), 2, example_inputs=INPUTS[0])
    assert found.opaque["1"] == "its rewritten forward gives other outputs than its own"


def test_a_difference_that_no_rewrite_makes_is_an_error() -> None:
    compiled = compile_model(net(), 2, example_inputs=INPUTS[0])
    other = observe(net(), INPUTS)
    with pytest.raises(CheckError, match="in evaluation mode an augmented pass at the original's widths differs"):
        wrong_rewrite(compiled.supernet, compiled.plan.base, other, INPUTS)


def test_what_was_observed_is_the_models_own_and_the_model_stays_as_it_was() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = observe(model, INPUTS)
    assert torch.equal(seen.outputs[False][0], model.eval()(*INPUTS[0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert seen.buffers[True]["1.norm.num_batches_tracked"] == 1
    assert seen.operators[False].count("aten.convolution.default") == 2
