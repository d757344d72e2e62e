"""Deep copies of models, whatever their modules keep as attributes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from netaug_fx.passes.copying import copy_model


def test_a_copy_shares_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = copy_model(model)
    assert type(twin) is nn.Sequential
    assert all(a is not b and torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with torch.no_grad():
        twin[0].weight.zero_()
    assert model[0].weight.abs().sum() > 0


def test_computed_tensors_are_copied_without_their_history() -> None:
    layer = nn.Linear(3, 4)
    layer.last = layer(torch.rand(2, 3))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    twin = copy_model(layer)
    assert torch.equal(twin.last, layer.last)  # type: ignore[arg-type]
    assert twin.last.grad_fn is None  # type: ignore[union-attr]
    assert layer.last.grad_fn is not None, "the model's own stays as it is"  # type: ignore[union-attr]


def test_the_old_weight_norm_can_be_copied_and_trained() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(3, 4))
    twin = copy_model(layer)
    data = torch.rand(2, 3)
    assert torch.equal(twin(data), layer(data))
    twin(data).sum().backward()
    assert twin.weight_g.grad is not None
    assert layer.weight_g.grad is None


def test_a_memo_decides_what_stands_for_what() -> None:
    model = nn.Linear(3, 4)
    replacement = nn.Parameter(torch.zeros(4, 3))
    twin = copy_model(model, {id(model.weight): replacement})
    assert twin.weight is replacement
    assert twin.bias is not model.bias
