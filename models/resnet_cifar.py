"""ResNet-20 and ResNet-56 for images of 32 pixels and less, and their kind at any depth.

Paper: He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2. Where width and
resolution change, the shortcut is a strided 1x1 convolution with norm (option B there), so that channels stay free.
"""

from torch import Tensor, nn

from netaug_fx.errors import InputError
from netaug_fx.models.blocks import check_arguments, dropout_layer, initialise_
from netaug_fx.models.registry import register
from netaug_fx.models.resnet import BasicBlock, stage

_WIDTHS = (16, 32, 64)


class ResNetCifar(nn.Module):
    """3x3 stem, three stages of residual blocks, global average pooling, dropout, linear classifier.

    Args:
        depth: layers with weights along the main path: 6n + 2 for n blocks in each stage.
        num_classes: classes of the classifier.
        in_channels: channels of the input image.
        dropout: probability of dropping a feature that the classifier reads; 0 for none.
        width: factor on the channels of every stage.

    Shapes: (N, in_channels, H, W) -> logits (N, num_classes).

    Attributes:
        example_input_shape: (in_channels, 32, 32), one input without the batch dimension.

    Raises:
        InputError: ``depth`` is not 6n + 2, ``num_classes``, ``in_channels`` or ``width`` below 1, or ``dropout``
            outside [0, 1).
    """

    def __init__(
        self, depth: int, *, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0, width: int = 1
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout)
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise InputError(f"depth must be 6n + 2 for n blocks in each of three stages, such as 20, not {depth}")
        if width < 1:
            raise InputError(f"width must be a factor of at least 1 on 16, 32 and 64 channels, not {width}")
        widths = tuple(width * channels for channels in _WIDTHS)
        self.example_input_shape = (in_channels, 32, 32)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = stage(BasicBlock, widths[0], widths[0], blocks, stride=1)
        self.layer2 = stage(BasicBlock, widths[0], widths[1], blocks, stride=2)
        self.layer3 = stage(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.fc = nn.Linear(widths[2], num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch of images (N, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits


@register
def resnet20(*, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> ResNetCifar:
    """ResNet-20 for CIFAR: 0.27M parameters, 41M MACs at 32 pixels. ``dropout`` acts on what the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return ResNetCifar(20, num_classes=num_classes, in_channels=in_channels, dropout=dropout)


@register
def resnet56(*, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> ResNetCifar:
    """ResNet-56 for CIFAR: 0.86M parameters, 126M MACs at 32 pixels. ``dropout`` acts on what the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return ResNetCifar(56, num_classes=num_classes, in_channels=in_channels, dropout=dropout)
