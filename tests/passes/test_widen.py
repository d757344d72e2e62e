"""The widened copy: which classes are swapped, what blocks they hold, and how these start."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from netaug_fx.assembly import PARAMETER, STATISTIC
from netaug_fx.elastic import STATE, ModuleState, is_elastic
from netaug_fx.passes.infer import infer
from netaug_fx.passes.layout import Grow, shape
from netaug_fx.passes.plan import plan
from netaug_fx.passes.widen import widen
from tests.passes.tied import Tied

INPUTS = ((torch.rand(2, 3, 6, 6),), {})


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.act, self.project = nn.ReLU(), nn.Conv2d(64, 48, 1)
        self.head = nn.Linear(48, 2)

    def forward(self, data: Tensor) -> Tensor:
        hidden = self.act(self.depthwise(self.norm(self.stem(data))))
        return self.head(self.project(hidden).mean((2, 3)))  # type: ignore[no-any-return]


def widened(model: nn.Module, ratio: float = 3, seed: int = 0) -> nn.Module:
    analysis = infer(model, INPUTS)
    return widen(model, analysis, plan(model, analysis, ratio), seed=seed)


def state_of(module: nn.Module) -> ModuleState:
    state: ModuleState = module.__dict__[STATE]
    return state


def test_classes_are_subclasses_under_their_own_name() -> None:
    model = Own()
    supernet = widened(model)
    for ours, theirs in zip(supernet.modules(), model.modules(), strict=True):
        assert isinstance(ours, type(theirs))
        assert type(ours).__name__ == type(theirs).__name__
    elastic = [path for path, module in supernet.named_modules() if is_elastic(module)]
    assert elastic == ["stem", "norm", "depthwise", "project", "head"], "what holds no width keeps its class"
    assert repr(supernet) == repr(model)


def test_the_originals_tensors_keep_name_shape_and_values() -> None:
    model = Own()
    supernet = widened(model)
    named = dict(supernet.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(named[name], parameter)
        assert named[name] is not parameter
    extras = {name for name in named if "netaug" in name}
    assert set(named) == extras | {name for name, _ in model.named_parameters()}


def test_blocks_fill_exactly_what_is_missing() -> None:
    supernet = widened(Own())
    for module in supernet.modules():
        if not is_elastic(module):
            continue
        for tensor in state_of(module).tensors.values():
            if tensor.kind != PARAMETER:
                continue
            blocks = [module._parameters[name] for name in tensor.extras]
            base = module._parameters[tensor.name]
            assert base is not None
            stored = base.numel() + sum(block.numel() for block in blocks if block is not None)
            assert stored == torch.Size(shape(tensor.layouts, state_of(module).active.widest)).numel(), tensor.full_name


def test_integers_statistics_and_roles() -> None:
    supernet = widened(Own())
    assert isinstance(state_of(supernet.depthwise).integers["groups"], Grow)  # type: ignore[arg-type]
    kinds = {name: tensor.kind for name, tensor in state_of(supernet.norm).tensors.items()}  # type: ignore[arg-type]
    assert (kinds["weight"], kinds["bias"]) == (PARAMETER, PARAMETER)
    assert {kinds[name] for name in ("running_mean", "running_var", "num_batches_tracked")} == {STATISTIC}
    project = state_of(supernet.project).tensors["weight"]  # type: ignore[arg-type]
    assert (project.dims, project.contracted) == ((0, 1), (1,))


def test_extra_weights_start_at_the_scale_that_keeps_outputs_even() -> None:
    torch.manual_seed(0)
    model = Own()
    with torch.no_grad():
        model.norm.weight.fill_(0.7)
        model.depthwise.bias.zero_()
    supernet = widened(model)
    parameters = {name: parameter.detach() for name, parameter in supernet.named_parameters()}
    into_old = parameters["project.weight_netaug1"]
    assert float(into_old.std()) == pytest.approx(float(model.project.weight.detach().std()) / 3**0.5, rel=0.05)
    assert abs(float(into_old.mean())) < 0.1 * float(into_old.std())
    torch.testing.assert_close(parameters["norm.weight_netaug0"], torch.full((128,), 0.7))
    assert torch.equal(parameters["depthwise.bias_netaug0"], torch.zeros(128))
    extra, base = parameters["stem.weight_netaug0"], model.stem.weight.detach()
    assert float(extra.std()) == pytest.approx(float(base.std()), rel=0.1)


def test_the_seed_decides_the_extra_weights_and_nothing_else_is_drawn() -> None:
    model = Own()
    before = torch.get_rng_state()
    first, again, other = widened(model, seed=1), widened(model, seed=1), widened(model, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.stem.weight_netaug0, other.stem.weight_netaug0)  # type: ignore[union-attr,arg-type]


def test_frozen_and_half_precision_tensors_have_blocks_like_them() -> None:
    model = Own().to(torch.bfloat16)
    model.project.weight.requires_grad_(False)
    analysis = infer(model, (((INPUTS[0][0].bfloat16()),), {}))
    supernet = widen(model, analysis, plan(model, analysis))
    named = dict(supernet.named_parameters())
    assert {parameter.dtype for parameter in named.values()} == {torch.bfloat16}
    assert not named["project.weight_netaug1"].requires_grad
    assert named["project.bias_netaug0"].requires_grad


def test_tied_tensors_share_their_blocks() -> None:
    model, inputs = Tied(), ((torch.zeros(2, 5, dtype=torch.int64),), {})
    analysis = infer(model, inputs)
    supernet = widen(model, analysis, plan(model, analysis))
    assert supernet.table.weight_netaug1 is supernet.head.weight_netaug1  # type: ignore[union-attr]
    assert copy.deepcopy(supernet).table.weight_netaug1.shape == (9, 12)  # type: ignore[union-attr,operator]
