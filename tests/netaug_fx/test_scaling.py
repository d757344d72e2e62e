"""What greedy enlarging is held against: all widths by one factor, and compound scaling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from netaug_fx.candidates import Net, net_of, rebuilt
from netaug_fx.errors import InputError, PlanError
from netaug_fx.models import ResNetCifar, digits_net
from netaug_fx.passes.stages import repeatable_blocks
from netaug_fx.scaling import DEPTH, RESOLUTION, WIDTH, scaled_by_width, scaled_compound


def net(model: nn.Module, side: int = 8) -> Net:
    return net_of(model.eval(), ((torch.randn(2, 1, side, side),), {}))


def test_all_widths_grow_by_one_factor() -> None:
    first = net(digits_net())
    scaled = scaled_by_width(first, 4 * first.macs)
    assert scaled.macs == pytest.approx(4 * first.macs, rel=0.02)
    assert scaled.resolution == 8
    (change,) = scaled.changes
    stem, last = scaled.model.stem.conv, scaled.model.classifier
    assert isinstance(stem, nn.Conv2d)
    assert isinstance(last, nn.Linear)
    assert stem.out_channels / 8 == pytest.approx(last.in_features / 48, rel=0.05)
    assert len(change["widths"]) == 7


def test_compound_scaling_grows_depth_width_and_resolution_together() -> None:
    first = net(digits_net())
    scaled = scaled_compound(first, 4 * first.macs, pixels=1)
    phi = math.log(4) / math.log(DEPTH * WIDTH**2 * RESOLUTION**2)
    assert scaled.macs == pytest.approx(4 * first.macs, rel=0.02)
    assert scaled.resolution == round(8 * RESOLUTION**phi) == 11
    blocks = repeatable_blocks(scaled.model, scaled.inputs)
    assert len(blocks) == len(repeatable_blocks(first.model, first.inputs)) + 2, "two stages of two blocks get one each"
    anew = rebuilt(first.model, scaled.changes, example_inputs=first.inputs)
    anew.load_state_dict(scaled.model.state_dict())


def test_what_rounds_up_beyond_the_budget_is_scaled_less() -> None:
    first = net(ResNetCifar(8, in_channels=1))
    scaled = scaled_compound(first, round(1.3 * first.macs), pixels=4)
    assert scaled.macs == pytest.approx(1.3 * first.macs, rel=0.05)
    assert scaled.resolution == 8, "four pixels more alone are above the budget"


def test_a_net_that_cannot_be_scaled_says_so() -> None:
    flat = net_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), ((torch.zeros(2, 1, 8, 8),), {}))
    with pytest.raises(PlanError, match="no width that could grow"):
        scaled_by_width(flat, 10_000)
    with pytest.raises(PlanError, match="nothing that could be scaled"):
        scaled_compound(flat, 10_000)


def test_a_budget_below_the_net_is_refused_and_its_own_leaves_it() -> None:
    """Compound scaling looked for it for ever."""
    first = net(digits_net())
    for scale in (scaled_by_width, scaled_compound):
        with pytest.raises(InputError, match=r"is below what .* has"):
            scale(first, first.macs - 1)
        assert scale(first, first.macs) is first


def test_images_between_two_multiples_of_the_pixels_do_not_keep_a_scaling_from_its_end() -> None:
    first = net(digits_net(), 14)  # the next multiple of 8 is above the budget, at any exponent
    scaled = scaled_compound(first, round(1.1 * first.macs), pixels=8)
    assert scaled.resolution == 14
    assert scaled.macs == pytest.approx(1.1 * first.macs, rel=0.03)
