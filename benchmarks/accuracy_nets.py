"""The nets that accuracy is measured on: a plain net of inverted bottlenecks at any size, and ResNet-18.

Settings of a run name them as ``benchmarks/accuracy_nets.py:tiny`` and so on. Parameters with 62 classes and one
channel, at 14 pixels:

=======================  =======
``width=3, depth=1``       1,808
``width=8, depth=1``       6,758
``width=8, depth=2``      17,118
``width=20, depth=2``     85,182
``width=40, depth=2``    311,902
=======================  =======
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import DropBlock2d

from netaug_fx import models
from netaug_fx.errors import InputError
from netaug_fx.models.inverted import InvertedResidualNet, Stage

LARGE_SIDE = 20
"""From this side in pixels on the stem halves the resolution."""


class DropBlock(nn.Module):
    """torchvision's DropBlock (Ghiasi et al., NeurIPS 2018), its square cut to the side of small feature maps.

    Shapes: (N, C, H, W) -> the same.
    """

    def __init__(self, probability: float, side: int) -> None:
        super().__init__()
        self.probability, self.side = probability, side

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes squares in training mode and scales the rest up; the identity in evaluation mode."""
        side = min(self.side, *x.shape[-2:])
        side -= 1 - side % 2  # torchvision wants it odd
        dropped: Tensor = DropBlock2d(self.probability, side).train(self.training)(x)
        return dropped


def tiny(
    num_classes: int,
    in_channels: int = 1,
    *,
    width: int = 8,
    depth: int = 1,
    expand: int = 3,
    side: int = 14,
    dropout: float = 0.0,
    dropblock: float = 0.0,
    dropblock_side: int = 3,
) -> InvertedResidualNet:
    """Stem, three stages of inverted bottlenecks, global pooling, linear classifier.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of stem and first stage; the other stages have twice and four times as many.
        depth: Blocks in each stage.
        expand: Inner channels over those that feed the block; 1 gives depthwise-separable blocks.
        side: Of the images that it is meant for: 8 and 14 keep their resolution in the stem, 28 halves it.
        dropout: Probability of dropping a feature that the classifier reads.
        dropblock: Probability of DropBlock behind each block of the last two stages.
        dropblock_side: Of its squares.

    Raises:
        InputError: width, depth or expand is below 1, or a probability is out of range.
    """
    for name, value in (("width", width), ("depth", depth), ("expand", expand)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected an integer of at least 1")
    stages, feeding = [], width
    for factor, stride in ((1, 1), (2, 2), (4, 2)):
        fed = [feeding, *[factor * width] * (depth - 1)]
        inners = tuple(None if expand == 1 else expand * channels for channels in fed)
        stages.append(Stage(factor * width, stride, (3,) * depth, inners))
        feeding = factor * width
    net = InvertedResidualNet(
        stages,
        stem_width=width,
        head_width=None,
        resolution=side,
        stem_stride=2 if side >= LARGE_SIDE else 1,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
    for index in range(depth, 3 * depth) if dropblock else ():
        net.blocks[index] = _with_dropblock(net.blocks[index], dropblock, dropblock_side)
    return net


def resnet18(
    num_classes: int, in_channels: int = 1, *, dropout: float = 0.0, dropblock: float = 0.0, dropblock_side: int = 3
) -> nn.Module:
    """ResNet-18 as in the zoo; DropBlock behind its last two stages, where the paper has it."""
    net = models.resnet18(num_classes=num_classes, in_channels=in_channels, dropout=dropout)
    for name in ("layer3", "layer4") if dropblock else ():
        setattr(net, name, _with_dropblock(net.get_submodule(name), dropblock, dropblock_side))
    return net


def resnet34(num_classes: int, in_channels: int = 1) -> nn.Module:
    """ResNet-34 as in the zoo: the teacher of ResNet-18."""
    return models.resnet34(num_classes=num_classes, in_channels=in_channels)


def _with_dropblock(block: nn.Module, probability: float, side: int) -> nn.Sequential:
    """The block, then DropBlock.

    Raises:
        InputError: the probability is out of range.
    """
    if not 0 < probability < 1:
        raise InputError(f"dropblock is {probability}; expected a probability in [0, 1)")
    return nn.Sequential(OrderedDict(block=block, dropblock=DropBlock(probability, side)))
