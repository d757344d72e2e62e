"""MobileNetV2 at width 0.35, and MobileNetV2-Tiny.

Papers: Sandler et al., MobileNetV2, arXiv 1801.04381; Cai et al., Network Augmentation for Tiny Deep Learning,
arXiv 2110.08890 (the Tiny variant).
"""

from netaug_fx.models.blocks import round_channels
from netaug_fx.models.inverted import InvertedResidualNet, stages_from_ratios
from netaug_fx.models.registry import register

_WIDTH = 0.35
_STEM = round_channels(32 * _WIDTH)

# Table 2 of the MobileNetV2 paper, at width 1: width, stride, kernels, expand ratios.
_TABLE = (
    (16, 1, (3,), (1,)),
    (24, 2, (3,) * 2, (6,) * 2),
    (32, 2, (3,) * 3, (6,) * 3),
    (64, 2, (3,) * 4, (6,) * 4),
    (96, 1, (3,) * 3, (6,) * 3),
    (160, 2, (3,) * 3, (6,) * 3),
    (320, 1, (3,), (6,)),
)


@register
def mobilenet_v2_035(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InvertedResidualNet:
    """MobileNetV2 w0.35: 30.875M MACs at 160x160, 1.677M parameters with 1000 classes.

    The last convolution keeps its 1280 channels. ``dropout`` acts on the features the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        stages_from_ratios(_TABLE, _STEM, _WIDTH),
        stem_width=_STEM,
        head_width=1280,
        resolution=160,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )


@register
def mobilenet_v2_tiny(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InvertedResidualNet:
    """MobileNetV2-Tiny: 23.499M MACs at 144x144, 0.750M parameters with 1000 classes.

    MobileNetV2 w0.35 with the last convolution scaled too (448 channels). ``dropout`` acts on the features the
    classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        stages_from_ratios(_TABLE, _STEM, _WIDTH),
        stem_width=_STEM,
        head_width=round_channels(1280 * _WIDTH),
        resolution=144,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
