"""A very small net for images of about 96 pixels: the body of the detectors of rendered scenes, to be pre-trained."""

from netaug_fx.models.inverted import InvertedResidualNet, Stage
from netaug_fx.models.registry import register

_STAGES = (
    Stage(16, 2, kernels=(3, 3), inners=(None, 24)),
    Stage(24, 2, kernels=(3, 3), inners=(24, 40)),
    Stage(40, 2, kernels=(3, 3), inners=(48, 80)),
)


@register
def scenes_net(*, num_classes: int = 62, in_channels: int = 1, dropout: float = 0.0) -> InvertedResidualNet:
    """Six inverted bottlenecks at strides 4, 8 and 16: 2.162M MACs at 96x96, 26598 parameters with 62 classes.

    The classes are 0-9, A-Z and a-z by default. ``dropout`` acts on the features the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        _STAGES,
        stem_width=8,
        head_width=96,
        resolution=96,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
