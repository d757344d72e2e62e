"""Supernets of models whose own names meet the supernet's, and of roots of other kinds."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx import Supernet
from netaug_fx.supernet import control
from tests import invariants
from tests.netaug_fx.small_nets import Mlp

# -- names that the model has too --------------------------------------------------------------------------------------

NAMES = ("groups", "widths", "sample", "augmented", "widest", "pins", "target_state_dict")


class Own(Mlp):
    """A model with something of its own under one of the supernet's names."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__()
        self.name, self.what = name, what
        values = {"module": nn.Linear(8, 8), "parameter": nn.Parameter(torch.ones(8)), "attribute": 3.0}
        if what == "buffer":
            self.register_buffer(name, torch.full((8,), 2.0))
        else:
            setattr(self, name, values[what])

    def forward(self, x: Tensor) -> Tensor:
        own, hidden = getattr(self, self.name), self.first(x).relu()
        return self.last(own(hidden) if self.what == "module" else hidden * own)


class OwnMembers(Mlp):
    """A model whose class has methods and properties of these names."""

    def sample(self) -> float:
        return 2.0

    def augmented(self, x: Tensor) -> Tensor:
        return x * 3.0

    @property
    def groups(self) -> float:
        return 5.0

    widths = 7.0

    def forward(self, x: Tensor) -> Tensor:
        return self.augmented(super().forward(x)) * self.sample() * self.groups * self.widths


def assert_works_beside_the_models_own(model: nn.Module) -> None:
    supernet = netaug_fx.augment(model)
    x = torch.randn(3, 4)
    assert torch.equal(supernet(x), model(x))
    first = next(group for group in control(supernet).groups if group.name == "first")
    with Supernet.augmented(supernet, {"first": 24}) as widths:
        assert widths["first"] == 24
        assert supernet.first.weight.shape == (24, 4)
        supernet(x).sum().backward()
    assert first.choices == (8, 16, 24)
    assert Supernet.sample(supernet)["first"] in first.choices
    assert list(Supernet.target_state_dict(supernet)) == list(model.state_dict())
    netaug_fx.calibrate_(supernet, [x], widths)
    netaug_fx.sort_channels_(supernet, kinds=("inner", "stream"))
    tiny = netaug_fx.extract(supernet)
    assert torch.equal(tiny(x), supernet(x))
    assert list(tiny.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("what", ["module", "parameter", "buffer", "attribute"])
@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_names_win(name: str, what: str) -> None:
    assert_works_beside_the_models_own(Own(name, what))


def test_the_models_own_methods_win() -> None:
    assert_works_beside_the_models_own(OwnMembers())


# -- roots of other kinds ----------------------------------------------------------------------------------------------


def test_a_sequential_root() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    supernet: Any = netaug_fx.augment(model)
    assert isinstance(supernet, nn.Sequential)
    assert len(supernet) == 4
    assert [group.name for group in supernet.groups] == ["0"]
    x = torch.randn(5, 4)
    invariants.assert_target_is_the_model(supernet, model, ((x,), {}))
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))
    with supernet.augmented({"0": 13}):
        assert supernet[:3](x).shape == (5, 13)


class RootWeights(nn.Module):
    """Holds its own parameters and statistics, and uses them in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.bias = nn.Parameter(torch.randn(8))
        self.register_buffer("scale", torch.rand(8))
        self.last = nn.Linear(8, 2)
        self.example_input_shape = (4,)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.linear(x, self.weight, self.bias).relu() * self.scale)


def test_a_root_with_weights_of_its_own() -> None:
    model = RootWeights()
    supernet: Any = netaug_fx.augment(model)
    inputs = ((torch.randn(5, 4),), {})
    invariants.assert_target_is_the_model(supernet, model, inputs)
    invariants.assert_extract_restores(supernet, model, inputs)
    invariants.assert_zeroed_extras_give_the_target(supernet, inputs)
    with supernet.augmented(supernet.widest):
        assert (supernet.weight.shape, supernet.bias.shape, supernet.scale.shape) == ((24, 4), (24,), (24,))
    assert list(supernet.target_state_dict()) == list(model.state_dict())
