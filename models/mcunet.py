"""MCUNet, the net found for a microcontroller that the NetAug paper trains.

Papers: Lin et al., MCUNet: Tiny Deep Learning on IoT Devices, NeurIPS 2020; Cai et al., Network Augmentation for Tiny
Deep Learning, arXiv 2110.08890.
"""

from netaug_fx.models.inverted import InvertedResidualNet, stages_from_ratios
from netaug_fx.models.registry import register

_STEM = 16

# Width, stride, kernels, expand ratios.
_TABLE = (
    (8, 1, (3,), (1,)),
    (16, 2, (7, 3, 7, 5), (3, 5, 5, 4)),
    (24, 2, (5, 5, 5), (5, 5, 5)),
    (40, 2, (3, 7, 5), (5, 6, 4)),
    (48, 1, (5, 7, 3), (5, 5, 5)),
    (96, 2, (3, 7, 3), (6, 5, 4)),
    (160, 1, (7,), (5,)),
)


@register
def mcunet(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InvertedResidualNet:
    """MCUNet: 81.786M MACs at 176x176, 0.737M parameters with 1000 classes.

    There is no last convolution: the classifier reads the 160 channels of the last block. ``dropout`` acts on them.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        stages_from_ratios(_TABLE, _STEM),
        stem_width=_STEM,
        head_width=None,
        resolution=176,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
