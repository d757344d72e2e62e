"""GhostNet 1.0x: half of each layer's channels come from a convolution, the other half from cheap filters on these.

Paper: Han et al., GhostNet: More Features from Cheap Operations, arXiv 1911.11907.
"""

import torch
from torch import Tensor, nn

from netaug_fx.models.blocks import (
    ConvNormAct,
    SqueezeExcite,
    check_arguments,
    dropout_layer,
    initialise_,
    round_channels,
)
from netaug_fx.models.registry import register

_STEM, _HEAD, _FEATURES = 16, 960, 1280

# Table 1 of the paper: kernel, inner channels, width, gate, stride.
_ROWS = (
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)


class GhostModule(nn.Module):
    """A 1x1 convolution for half of the output, and a depthwise 3x3 one on that half for the other (equation 3).

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H, W), for even ``out_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, activation: bool) -> None:
        super().__init__()
        half = out_channels // 2
        act = nn.ReLU if activation else None
        self.primary = ConvNormAct(in_channels, half, activation=act)
        self.cheap = ConvNormAct(half, half, 3, groups=half, activation=act)

    def forward(self, x: Tensor) -> Tensor:
        """The primary half, then the cheap one."""
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)


class GhostBottleneck(nn.Module):
    """Two ghost modules, with a strided depthwise convolution and a gate between where asked for, and a shortcut.

    Where width or size change, the shortcut is a depthwise and a 1x1 convolution.

    Args:
        in_channels: channels of the input.
        inner: channels between the ghost modules.
        out_channels: channels of the output.
        kernel: of the depthwise convolutions.
        stride: of the block.
        squeeze: whether a squeeze-excite gate acts on the inner channels.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, inner: int, out_channels: int, *, kernel: int, stride: int, squeeze: bool
    ) -> None:
        super().__init__()
        self.expand = GhostModule(in_channels, inner, activation=True)
        self.reduce = (
            ConvNormAct(inner, inner, kernel, stride, groups=inner, activation=None) if stride > 1 else nn.Identity()
        )
        self.squeeze = SqueezeExcite(inner, round_channels(inner / 4, 4)) if squeeze else nn.Identity()
        self.project = GhostModule(inner, out_channels, activation=False)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                ConvNormAct(in_channels, in_channels, kernel, stride, groups=in_channels, activation=None),
                ConvNormAct(in_channels, out_channels, activation=None),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``shortcut(x) + body(x)``."""
        y = self.project(self.squeeze(self.reduce(self.expand(x))))
        out: Tensor = self.shortcut(x) + y
        return out


class GhostNet(nn.Module):
    """Stem, ghost bottlenecks, 1x1 convolution, global average pooling, a hidden layer, dropout, linear classifier.

    Args:
        num_classes: classes of the classifier.
        in_channels: channels of the input image.
        dropout: probability of dropping a feature that the classifier reads; 0 for none (0.2 in the paper).

    Shapes: (N, in_channels, H, W) -> logits (N, num_classes).

    Attributes:
        example_input_shape: (in_channels, 224, 224), one input without the batch dimension.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout)
        self.example_input_shape = (in_channels, 224, 224)
        self.stem = ConvNormAct(in_channels, _STEM, 3, 2, activation=nn.ReLU)
        blocks = []
        channels = _STEM
        for kernel, inner, width, squeeze, stride in _ROWS:
            blocks.append(GhostBottleneck(channels, inner, width, kernel=kernel, stride=stride, squeeze=squeeze))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNormAct(channels, _HEAD, activation=nn.ReLU)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Conv2d(_HEAD, _FEATURES, 1)
        self.act = nn.ReLU()
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.classifier = nn.Linear(_FEATURES, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch of images (N, in_channels, H, W)."""
        x = self.pool(self.head(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(self.dropout(self.flatten(self.act(self.hidden(x)))))
        return logits


@register
def ghostnet(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> GhostNet:
    """GhostNet 1.0x: 141M MACs at 224x224, 5.18M parameters. ``dropout`` acts on what the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return GhostNet(num_classes=num_classes, in_channels=in_channels, dropout=dropout)
