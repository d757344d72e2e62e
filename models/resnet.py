"""ResNet-18, 34 and 50: the large-net control, which Network Augmentation is expected not to help.

Paper: He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385. As is usual since, a bottleneck's
stride sits in its 3x3 convolution. Modules are named as in the common checkpoints (conv1, layer1.0.bn1, ..., fc), so
that these load.
"""

from torch import Tensor, nn

from netaug_fx.models.blocks import check_arguments, dropout_layer, initialise_
from netaug_fx.models.registry import register


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut: an identity where shapes agree, else a strided 1x1 convolution with norm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Shapes: (N, in_channels, H, W) -> (N, width, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(shortcut(x) + body(x))``."""
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.downsample(x) + self.bn2(self.conv2(y)))
        return out


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and 1x1 convolution, the last four times as wide, and a shortcut.

    Shapes: (N, in_channels, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(shortcut(x) + body(x))``."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.downsample(x) + self.bn3(self.conv3(y)))
        return out


Block = type[BasicBlock] | type[Bottleneck]


def stage(block: Block, in_channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """``depth`` blocks of one width; the first changes width and resolution."""
    later = [block(width * block.expansion, width, stride=1) for _ in range(depth - 1)]
    return nn.Sequential(block(in_channels, width, stride), *later)


class ResNet(nn.Module):
    """7x7 stem, max pooling, four stages of residual blocks, global average pooling, dropout, linear classifier.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: number of blocks of each of the four stages.
        num_classes: classes of the classifier.
        in_channels: channels of the input image.
        dropout: probability of dropping a feature that the classifier reads; 0 for none.

    Shapes: (N, in_channels, H, W) -> logits (N, num_classes).

    Attributes:
        example_input_shape: (in_channels, 224, 224), one input without the batch dimension.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(num_classes, in_channels, dropout)
        self.example_input_shape = (in_channels, 224, 224)
        self.conv1 = _conv(in_channels, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        expansion = block.expansion
        self.layer1 = stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = stage(block, 64 * expansion, 128, depths[1], stride=2)
        self.layer3 = stage(block, 128 * expansion, 256, depths[2], stride=2)
        self.layer4 = stage(block, 256 * expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.fc = nn.Linear(512 * expansion, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of a batch of images (N, in_channels, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits


@register
def resnet18(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> ResNet:
    """ResNet-18: 11,689,512 parameters with 1000 classes. ``dropout`` acts on the features the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, dropout=dropout)


@register
def resnet34(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> ResNet:
    """ResNet-34: 21,797,672 parameters with 1000 classes. ``dropout`` acts on the features the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, dropout=dropout)


@register
def resnet50(*, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> ResNet:
    """ResNet-50: 25,557,032 parameters with 1000 classes. ``dropout`` acts on the features the classifier reads.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1, or ``dropout`` outside [0, 1).
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, dropout=dropout)
