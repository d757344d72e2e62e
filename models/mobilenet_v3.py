"""MobileNetV3-Large at width 0.35.

Paper: Howard et al., Searching for MobileNetV3, arXiv 1905.02244.
"""

from torch import nn

from netaug_fx.models.blocks import Activation, Squeeze, SqueezeExcite, round_channels
from netaug_fx.models.inverted import InvertedResidualNet, Stage
from netaug_fx.models.registry import register

_WIDTH = 0.35


def _gate(_in_channels: int, inner: int) -> SqueezeExcite:
    return SqueezeExcite(inner)


def _stage(
    width: int,
    stride: int,
    kernel: int,
    inners: tuple[int, ...],
    activation: Activation,
    squeeze: Squeeze | None = None,
) -> Stage:
    """Rows of one width, scaled. The inner widths are scaled as printed, not taken from the ratio as in other nets."""
    scaled = tuple(round_channels(inner * _WIDTH) for inner in inners)
    kernels = (kernel,) * len(inners)
    return Stage(round_channels(width * _WIDTH), stride, kernels, scaled, activation, squeeze)


# Table 1 of the paper, blocks of one width joined: width, stride, kernel, "exp size" of each block, activation, gate.
_STAGES = (
    # The first block has no expansion, and it goes on with the stem's stream, so it has a shortcut.
    Stage(round_channels(16 * _WIDTH), 1, (3,), (None,), nn.ReLU, join=True),
    _stage(24, 2, 3, (64, 72), nn.ReLU),
    _stage(40, 2, 5, (72, 120, 120), nn.ReLU, squeeze=_gate),
    _stage(80, 2, 3, (240, 200, 184, 184), nn.Hardswish),
    _stage(112, 1, 3, (480, 672), nn.Hardswish, squeeze=_gate),
    _stage(160, 2, 5, (672, 960, 960), nn.Hardswish, squeeze=_gate),
)


@register
def mobilenet_v3_035(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InvertedResidualNet:
    """MobileNetV3-Large w0.35: 19.50M MACs at 160x160, 2.110M parameters with 1000 classes.

    The 1280 features after pooling are not scaled. ``dropout`` acts on them, before the classifier.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        _STAGES,
        stem_width=round_channels(16 * _WIDTH),
        head_width=round_channels(960 * _WIDTH),
        hidden_width=1280,
        resolution=160,
        activation=nn.Hardswish,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
