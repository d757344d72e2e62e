"""EfficientNet-B0, the base that compound scaling starts from.

Paper: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv 1905.11946.
Stochastic depth, which the paper trains with, is left out: it has no part in the net that is deployed.
"""

from torch import nn

from netaug_fx.models.blocks import SqueezeExcite
from netaug_fx.models.inverted import InvertedResidualNet, stages_from_ratios
from netaug_fx.models.registry import register

_STEM = 32

# Table 1 of the paper: width, stride, kernels, expand ratios.
_TABLE = (
    (16, 1, (3,), (1,)),
    (24, 2, (3,) * 2, (6,) * 2),
    (40, 2, (5,) * 2, (6,) * 2),
    (80, 2, (3,) * 3, (6,) * 3),
    (112, 1, (5,) * 3, (6,) * 3),
    (192, 2, (5,) * 4, (6,) * 4),
    (320, 1, (3,), (6,)),
)


def _gate(in_channels: int, inner: int) -> SqueezeExcite:
    """Hidden channels are a quarter of those that the block takes, not of the inner ones."""
    return SqueezeExcite(inner, max(in_channels // 4, 1), nn.SiLU, nn.Sigmoid)


@register
def efficientnet_b0(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InvertedResidualNet:
    """EfficientNet-B0: 385.8M MACs at 224x224, 5.289M parameters with 1000 classes.

    ``dropout`` acts on the features the classifier reads (0.2 in the paper).

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return InvertedResidualNet(
        stages_from_ratios(_TABLE, _STEM, activation=nn.SiLU, squeeze=_gate),
        stem_width=_STEM,
        head_width=1280,
        resolution=224,
        activation=nn.SiLU,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
