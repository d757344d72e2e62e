"""Predicted multiply-adds are those of nets that were really built so wide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netaug_fx import models
from netaug_fx.api import Compiled, compile_model
from netaug_fx.passes.growth import (
    growing_share_of_macs,
    growing_share_of_weights,
    predicted_macs,
)
from netaug_fx.passes.macs import count


class Net(nn.Module):
    def __init__(self, stem: int = 6, head: int = 8) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, stem, 3), nn.Conv2d(stem, stem, 3, groups=stem)
        self.up, self.head, self.last = nn.ConvTranspose2d(stem, stem, 2), nn.Linear(stem, head), nn.Linear(head, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.up(self.depth(self.stem(x))).mean((2, 3))).relu())  # type: ignore[no-any-return]


X = torch.randn(2, 3, 9, 8)


def compiled(model: nn.Module, x: Tensor = X) -> Compiled:
    return compile_model(model, example_inputs=x)


def test_the_original_costs_what_both_counters_count() -> None:
    expected = count(Net(), X)
    assert predicted_macs(compiled(Net()).analysis, {}) == expected.macs == expected.torch_macs


def test_a_wider_net_costs_what_a_net_built_so_wide_costs() -> None:
    found = compiled(Net())
    widths = {var: {6: 15, 8: 11}[var.size] for var in found.plan.numbers}
    assert len({var.size for var in widths}) == 2
    stem = next(var for var in widths if var.size == 6 and found.plan.groups[found.plan.numbers[var]].name == "stem")
    same = {var: 15 if var.size == 6 else 11 for var in widths}
    wide = Net(15, 11)
    wide.up = nn.ConvTranspose2d(15, 15, 2)
    assert predicted_macs(found.analysis, same) == count(wide, X).macs
    assert predicted_macs(found.analysis, {stem: 15}) > predicted_macs(found.analysis, {})


@pytest.mark.parametrize("name", ["digits_net", "mobilenet_v2_tiny"])
def test_nets_of_the_zoo_cost_what_is_counted(name: str) -> None:
    model = models.create(name)
    x = torch.randn(1, *model.example_input_shape)  # type: ignore[misc]
    found = compiled(model, x)
    assert predicted_macs(found.analysis, {}) == count(model, x).macs
    assert growing_share_of_macs(found.analysis, found.plan) == 1.0
    assert growing_share_of_weights(model, found.analysis, found.plan) == 1.0


def test_what_is_pinned_has_no_share() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 6), nn.Linear(6, 2))
    found = compile_model(model, example_inputs=torch.randn(2, 3))
    assert growing_share_of_weights(model, found.analysis, found.plan) == pytest.approx((24 + 12) / (12 + 24 + 12))
    assert growing_share_of_macs(found.analysis, found.plan) == pytest.approx((24 + 12) / (12 + 24 + 12))


def test_a_net_without_weights_has_no_share() -> None:
    found = compile_model(nn.ReLU(), example_inputs=torch.randn(2, 3), allow_nothing=True)
    assert growing_share_of_weights(nn.ReLU(), found.analysis, found.plan) == 0.0
    assert growing_share_of_macs(found.analysis, found.plan) == 0.0
