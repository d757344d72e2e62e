"""A feature pyramid: coarse feature maps, which know what is there, tell the finer ones, which know where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netaug_fx.errors import InputError
from netaug_fx.models.blocks import Activation, ConvNormAct, initialise_


class Separable(nn.Sequential):
    """Depthwise 3x3 and pointwise convolution, each with norm and activation.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Paper: Howard et al., MobileNets, arXiv 1704.04861.
    """

    def __init__(self, in_channels: int, out_channels: int, activation: Activation = nn.ReLU6) -> None:
        super().__init__()
        self.add_module("depthwise", depthwise(in_channels, activation))
        self.add_module("pointwise", ConvNormAct(in_channels, out_channels, activation=activation))


def depthwise(channels: int, activation: Activation = nn.ReLU6) -> ConvNormAct:
    """Depthwise 3x3 convolution with norm and activation: (N, channels, H, W) -> (N, channels, H, W)."""
    return ConvNormAct(channels, channels, 3, groups=channels, activation=activation)


class Merge(nn.Module):
    """One level of the pyramid: its own feature map beside the coarser level's, enlarged.

    Args:
        in_channels: of the backbone's feature map.
        above: channels of the coarser level.
        width: channels of this level.
        factor: by which the coarser level is coarser.

    Shapes: (N, in_channels, H, W) and (N, above, ceil(H / factor), ceil(W / factor)) -> (N, width, H, W).
    """

    def __init__(self, in_channels: int, above: int, width: int, factor: int, activation: Activation) -> None:
        super().__init__()
        self.lateral = ConvNormAct(in_channels, width, activation=activation)
        self.reduce = ConvNormAct(above, width, activation=activation)
        self.upsample = nn.Upsample(scale_factor=factor)
        self.mix = Separable(2 * width, width, activation)

    def forward(self, feature: Tensor, coarser: Tensor) -> Tensor:
        """This level's features; where the finer map ends within a coarse pixel, the rest of that is cut off."""
        side = self.lateral(feature)
        height, width = side.shape[-2:]
        enlarged = self.upsample(self.reduce(coarser))[..., :height, :width]
        mixed: Tensor = self.mix(torch.cat((side, enlarged), 1))
        return mixed


class PyramidNeck(nn.Module):
    """A feature pyramid from the coarsest level to the finest.

    Each level is its feature map of the backbone (through a 1x1 convolution), concatenated with the level above it
    (through a 1x1 convolution, enlarged by repeating pixels) and mixed by a depthwise-separable convolution. The
    concatenation is YOLOv3's; its five full convolutions a level would outweigh a tiny backbone.

    Args:
        in_channels: of the backbone's feature maps, finest first.
        strides: of these maps.
        widths: channels of each level of the pyramid.
        activation: class of the activations.

    Shapes: a tuple of (N, in_channels[i], H_i, W_i) -> a tuple of (N, widths[i], H_i, W_i).

    Raises:
        InputError: there are not as many channels and strides as widths, or none.

    Papers: Lin et al., Feature Pyramid Networks, arXiv 1612.03144; Redmon and Farhadi, YOLOv3, arXiv 1804.02767,
    section 2.3.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        widths: Sequence[int],
        activation: Activation = nn.ReLU6,
    ) -> None:
        super().__init__()
        if not len(in_channels) == len(strides) == len(widths) > 0:
            raise InputError(
                f"a pyramid of {len(in_channels)} feature maps, {len(strides)} strides and {len(widths)} widths; "
                "expected as many of each, and at least one."
            )
        self.channels = tuple(widths)
        self.top = nn.Sequential(
            ConvNormAct(in_channels[-1], widths[-1], activation=activation),
            Separable(widths[-1], widths[-1], activation),
        )
        self.merges = nn.ModuleList(
            Merge(in_channels[i], widths[i + 1], widths[i], strides[i + 1] // strides[i], activation)
            for i in range(len(widths) - 1)
        )
        initialise_(self)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The levels of the pyramid, finest first."""
        levels = [self.top(features[-1])]
        for level in reversed(range(len(self.merges))):
            levels.insert(0, self.merges[level](features[level], levels[0]))
        return tuple(levels)
