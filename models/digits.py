"""A very small net for 8x8 images of digits.

It trains in seconds on one core, and it has every kind of width that the large nets have: a stem, residual streams,
inner channels and a head.
"""

from netaug_fx.models.inverted import InvertedResidualNet, Stage
from netaug_fx.models.registry import register

_STAGES = (
    Stage(8, 1, kernels=(3, 3), inners=(None, 24)),
    Stage(16, 2, kernels=(3, 3), inners=(24, 48)),
)


@register
def digits_net(*, num_classes: int = 10, in_channels: int = 1, dropout: float = 0.0) -> InvertedResidualNet:
    """Four inverted bottlenecks for 8x8 images: 0.118M MACs, 5434 parameters with 10 classes.

    The stem keeps the full 8x8, the last stage works at 4x4. ``dropout`` acts on the features the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        _STAGES,
        stem_width=8,
        head_width=48,
        resolution=8,
        stem_stride=1,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
