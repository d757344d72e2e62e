"""One class for every net made of inverted bottlenecks, and the table format that the families fill in.

A net is a stem convolution, stages of inverted bottlenecks, an optional head, global average pooling and a linear
classifier. A family's file holds its paper's table; the net itself is written once, here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from netaug_fx.models.blocks import (
    Activation,
    ConvNormAct,
    InvertedResidual,
    Squeeze,
    check_arguments,
    dropout_layer,
    initialise_,
    round_channels,
)


@dataclass(frozen=True)
class Stage:
    """Blocks of one output width; the first changes width and resolution, the others have identity shortcuts.

    Attributes:
        width: output channels of every block.
        stride: stride of the first block.
        kernels: depthwise kernel size of each block.
        inners: inner channels of each block, as many as ``kernels``; None for a block without expansion.
        activation: class of the activation inside the blocks.
        squeeze: makes each block's gate, as for `InvertedResidual`; None for blocks without.
        join: whether the first block has a shortcut too; the stage then goes on with the stream that feeds it.
    """

    width: int
    stride: int
    kernels: tuple[int, ...]
    inners: tuple[int | None, ...]
    activation: Activation = nn.ReLU6
    squeeze: Squeeze | None = None
    join: bool = False


# Output width, stride, kernel sizes and expand ratios of a stage's blocks, as the papers print them.
RatioRow = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def stages_from_ratios(
    rows: Sequence[RatioRow],
    stem_width: int,
    multiplier: float = 1.0,
    activation: Activation = nn.ReLU6,
    squeeze: Squeeze | None = None,
) -> tuple[Stage, ...]:
    """Turn a table with expand ratios into stages.

    Args:
        rows: the table, with widths before scaling.
        stem_width: channels that feed the first block, after scaling.
        multiplier: factor on every width of the table, rounded by :func:`~netaug_fx.models.blocks.round_channels`.
        activation: of all blocks.
        squeeze: of all blocks.

    Returns:
        Stages whose inner widths are the ratio times the rounded width that feeds the block, rounded; ratio 1 means no
        expansion.
    """
    stages = []
    channels = stem_width
    for wanted, stride, kernels, ratios in rows:
        width = round_channels(wanted * multiplier)
        fed_by = (channels,) + (width,) * (len(ratios) - 1)
        inners = tuple(
            None if ratio == 1 else round_channels(fed * ratio) for fed, ratio in zip(fed_by, ratios, strict=True)
        )
        stages.append(Stage(width, stride, kernels, inners, activation, squeeze))
        channels = width
    return tuple(stages)


def _stage_blocks(in_channels: int, stage: Stage) -> list[InvertedResidual]:
    """The blocks of one stage, in order."""
    blocks = []
    for index, (kernel, inner) in enumerate(zip(stage.kernels, stage.inners, strict=True)):
        blocks.append(
            InvertedResidual(
                in_channels,
                stage.width,
                inner=inner,
                kernel=kernel,
                stride=stage.stride if index == 0 else 1,
                activation=stage.activation,
                squeeze=stage.squeeze,
                shortcut=index > 0 or stage.join,
            )
        )
        in_channels = stage.width
    return blocks


class InvertedResidualNet(nn.Module):
    """Stem, inverted bottlenecks, head, global average pooling, dropout, linear classifier.

    Args:
        stages: the body, first to last.
        stem_width: channels of the 3x3 stem convolution.
        head_width: channels of the last 1x1 convolution before pooling, or None for no such convolution.
        hidden_width: channels of a 1x1 convolution with bias and no norm after pooling (MobileNetV3), or None.
        resolution: height and width that the net was designed for; other sizes work too.
        stem_stride: stride of the stem.
        activation: class of the activation in stem and head.
        num_classes: classes of the classifier.
        in_channels: channels of the input image.
        dropout: probability of dropping a feature that the classifier reads; 0 for none.

    Shapes: (N, in_channels, H, W) -> logits (N, num_classes).

    Attributes:
        example_input_shape: (in_channels, H, W) of one input, without the batch dimension.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        stem_width: int,
        head_width: int | None,
        resolution: int,
        hidden_width: int | None = None,
        stem_stride: int = 2,
        activation: Activation = nn.ReLU6,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout)
        self.example_input_shape = (in_channels, resolution, resolution)
        self.stem = ConvNormAct(in_channels, stem_width, 3, stem_stride, activation=activation)
        blocks: list[InvertedResidual] = []
        channels = stem_width
        for stage in stages:
            blocks += _stage_blocks(channels, stage)
            channels = stage.width
        self.blocks = nn.Sequential(*blocks)
        head = nn.Sequential()
        if head_width is not None:
            head.add_module("conv", ConvNormAct(channels, head_width, activation=activation))
            channels = head_width
        head.add_module("pool", nn.AdaptiveAvgPool2d(1))
        if hidden_width is not None:
            head.add_module("hidden", nn.Conv2d(channels, hidden_width, 1))
            head.add_module("act", activation())
            channels = hidden_width
        self.head = head
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch of images (N, in_channels, H, W)."""
        features = self.flatten(self.head(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(self.dropout(features))
        return logits
