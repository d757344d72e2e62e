"""ProxylessNAS-Mobile at width 0.35.

Paper: Cai, Zhu, Han, ProxylessNAS, arXiv 1812.00332 (the net searched for a phone).
"""

from netaug_fx.models.blocks import round_channels
from netaug_fx.models.inverted import InvertedResidualNet, stages_from_ratios
from netaug_fx.models.registry import register

_WIDTH = 0.35
_STEM = round_channels(32 * _WIDTH)

# The net searched for mobile latency, at width 1: width, stride, kernels, expand ratios.
# Blocks that the search skipped are left out.
_TABLE = (
    (16, 1, (3,), (1,)),
    (32, 2, (5, 3), (3, 3)),
    (40, 2, (7, 3, 5, 5), (3, 3, 3, 3)),
    (80, 2, (7, 5, 5, 5), (6, 3, 3, 3)),
    (96, 1, (5, 5, 5, 5), (6, 3, 3, 3)),
    (192, 2, (7, 7, 7, 7), (6, 6, 3, 3)),
    (320, 1, (7,), (6,)),
)


@register
def proxylessnas_035(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InvertedResidualNet:
    """ProxylessNAS-Mobile w0.35: 35.717M MACs at 160x160, 1.781M parameters with 1000 classes.

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
