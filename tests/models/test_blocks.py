"""The blocks by themselves: rounding, shapes, gates and shortcuts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from netaug_fx.errors import InputError
from netaug_fx.models.blocks import ConvNormAct, InvertedResidual, SqueezeExcite, initialise_, round_channels
from netaug_fx.models.inverted import Stage, stages_from_ratios


@pytest.mark.parametrize(
    ("width", "rounded"), [(1, 8), (8.4, 8), (11.2, 16), (12, 16), (14, 16), (22.4, 24), (448, 448)]
)
def test_round_channels_at_known_widths(width: float, rounded: int) -> None:
    assert round_channels(width) == rounded


@given(st.floats(0.1, 5000), st.integers(1, 32))
def test_round_channels_gives_a_multiple_never_far_below(width: float, divisor: int) -> None:
    rounded = round_channels(width, divisor)
    assert rounded % divisor == 0
    assert 0.9 * width <= rounded <= width + divisor


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_norm_act_keeps_or_halves_the_size_rounding_up(kernel: int, stride: int) -> None:
    y = ConvNormAct(3, 5, kernel, stride)(torch.zeros(2, 3, 9, 12))
    assert y.shape == (2, 5, -(-9 // stride), 12 // stride)


def test_inverted_residual_with_a_zeroed_body_is_its_shortcut() -> None:
    x = torch.randn(2, 8, 6, 6)
    block = InvertedResidual(8, 8, inner=24, squeeze=lambda _, inner: SqueezeExcite(inner), shortcut=True).eval()
    nn.init.zeros_(block.body.project.norm.weight)
    assert torch.equal(block(x), x)
    block.shortcut = False
    assert torch.equal(block(x), torch.zeros_like(x))


def test_inverted_residual_without_expansion_has_the_inner_width_of_its_input() -> None:
    block = InvertedResidual(8, 16, inner=None, stride=2)
    assert not hasattr(block.body, "expand")
    assert block.body.depthwise.conv.groups == 8
    assert block(torch.zeros(1, 8, 7, 7)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize(("out_channels", "stride"), [(16, 1), (8, 2)])
def test_shortcut_between_different_shapes_is_refused(out_channels: int, stride: int) -> None:
    with pytest.raises(InputError, match="identity shortcut needs stride 1 and equal channels"):
        InvertedResidual(8, out_channels, inner=24, stride=stride, shortcut=True)


@pytest.mark.parametrize(("channels", "hidden"), [(24, 16), (72, 24), (336, 88)])
def test_squeeze_excite_width_and_range(channels: int, hidden: int) -> None:
    gate = SqueezeExcite(channels)
    assert gate.reduce.out_channels == hidden
    x = torch.rand(2, channels, 4, 4)
    y = gate(x)
    assert y.shape == x.shape
    assert ((y >= 0) & (y <= x)).all()


def test_squeeze_excite_takes_another_width_and_activations() -> None:
    gate = SqueezeExcite(24, 6, nn.SiLU, nn.Sigmoid)
    assert gate.reduce.out_channels == 6
    assert [type(module) for module in (gate.act, gate.gate)] == [nn.SiLU, nn.Sigmoid]


def test_stages_from_ratios_multiplies_the_width_that_feeds_each_block() -> None:
    stages = stages_from_ratios(((16, 1, (3,), (1,)), (64, 2, (3, 5), (6, 3))), stem_width=16, multiplier=0.35)
    assert stages == (Stage(8, 1, (3,), (None,)), Stage(24, 2, (3, 5), (48, 72)))


def test_initialise_uses_fan_out_for_convolutions_and_identities_for_norms() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 256, 3), nn.BatchNorm2d(256), nn.Flatten(), nn.Linear(256, 512))
    nn.init.constant_(net[1].weight, 5.0)
    initialise_(net)
    assert net[0].weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)
    assert torch.equal(net[1].weight, torch.ones(256))
    assert net[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(module.bias.any() for module in (net[0], net[1], net[3]))
