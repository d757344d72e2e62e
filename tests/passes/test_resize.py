"""Resizing to plain nets of other widths. (Narrower ones of every wiring: see test_evolution.)"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netaug_fx.api import Compiled, compile_model
from netaug_fx.passes.channels import Var
from netaug_fx.passes.resize import resize
from netaug_fx.passes.running import output_tensors
from tests.passes.tied import Tied
from tests.wirings import WIRINGS


def compiled(model: nn.Module, inputs: Any) -> Compiled:
    return compile_model(model, 2.0, example_inputs=inputs, allow_nothing=True)


def kept(found: Compiled, part: float) -> dict[Var, int]:
    """That part of every group's width, rounded up."""
    return {var: math.ceil(part * var.size) for var in found.plan.numbers}


def outputs(net: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = copy.deepcopy(inputs)
    with torch.no_grad():
        return output_tensors(net.eval()(*args, **kwargs))


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


LITERAL_AND_MOVING = ["literal_view", "shuffle_literal", "multihead_attention_self", "dense_block", "split_sizes"]


@pytest.mark.parametrize("name", LITERAL_AND_MOVING)
def test_a_wider_net_with_zeros_gives_the_same(name: str) -> None:
    wiring = WIRINGS[name]
    model, inputs = wiring.build(), wiring.inputs(2)
    found = compiled(model, inputs)
    wide = resize(model, found.analysis, {var: 2 * var.size for var in found.plan.numbers})
    assert_close(outputs(wide, inputs), outputs(model, inputs))


def test_a_forward_with_numbers_in_it_gets_a_class_that_can_be_copied_and_pickled() -> None:
    wiring = WIRINGS["literal_view"]
    model, inputs = wiring.build(), wiring.inputs(2)
    found = compiled(model, inputs)
    narrow = resize(model, found.analysis, kept(found, 0.5))
    assert isinstance(narrow, type(model))
    for twin in (copy.deepcopy(narrow), pickle.loads(pickle.dumps(narrow))):
        assert_close(outputs(twin, inputs), outputs(narrow, inputs))
        assert type(twin).__name__ == type(model).__name__


def test_layers_say_what_they_have_become() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    model.extend([nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(8 * 4, 2)])
    found = compiled(model, torch.zeros(2, 3, 6, 6))
    narrow: Any = resize(model, found.analysis, kept(found, 0.5))
    assert (narrow[0].in_channels, narrow[0].out_channels, narrow[1].num_features) == (3, 4, 4)
    assert (narrow[3].in_channels, narrow[3].out_channels, narrow[3].groups) == (4, 4, 4)
    assert (narrow[4].num_channels, narrow[4].num_groups) == (4, 2)
    assert (narrow[6].in_features, narrow[6].out_features) == (16, 2)
    assert [type(layer) for layer in narrow] == [type(layer) for layer in model]


def test_norms_without_weights_say_what_they_have_become() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8, affine=False), nn.InstanceNorm2d(8), nn.Conv2d(8, 2, 3)
    )
    found = compiled(model, torch.zeros(2, 3, 6, 6))
    narrow: Any = resize(model, found.analysis, kept(found, 0.5))
    assert (narrow[1].num_groups, narrow[1].num_channels, narrow[2].num_features) == (2, 4, 4)


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    found = compiled(model, torch.zeros(2, 5, dtype=torch.int64))
    narrow: Any = resize(model, found.analysis, kept(found, 0.5))
    assert narrow.head.weight is narrow.table.weight
    assert tuple(narrow.table.weight.shape) == (9, 3)
