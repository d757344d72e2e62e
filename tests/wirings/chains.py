"""How layers follow each other: chains, residual sums, concatenations, dense blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.registry import CLASSES, conv_bn_relu, features, register, wiring


@wiring(
    "plain_chain", grows=("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "fc.weight"), pinned=("fc.bias",)
)
class PlainChain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 9, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.conv2(x).relu())
        return self.fc(torch.flatten(x, 1))


@wiring("coinciding_sizes", inputs=features(6, 6, 6), grows=("conv1.weight", "conv2.weight", "fc.weight"))
class CoincidingSizes(nn.Module):
    """Input channels, channels, height and width are all 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


def _flat_sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, CLASSES),
    )


register("flat_sequential", _flat_sequential, grows=("0.weight", "1.weight", "4.weight", "4.bias", "8.weight"))


def _single_inner_width() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, CLASSES))


register("single_inner_width", _single_inner_width, features(3, 4), grows=("1.weight", "1.bias", "3.weight"))


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class BlockNet(nn.Module):
    """Stem, the given blocks, pooling, classifier: the frame for anything that maps (B, C, H, W) to (B, D, H', W')."""

    def __init__(self, stem: int, blocks: list[nn.Module], out_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn_relu(in_channels, stem)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(out_channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x.mean(dim=(-2, -1)))


register(
    "residual_identity",
    lambda: BlockNet(8, [BasicBlock(8, 11, 8), BasicBlock(8, 5, 8)], 8),
    grows=("stem.0.weight", "blocks.0.conv1.weight", "blocks.0.conv2.weight", "blocks.1.bn2.weight", "head.weight"),
)
register(
    "projection_shortcut",
    lambda: BlockNet(6, [BasicBlock(6, 9, 10, stride=2)], 10),
    grows=("stem.0.weight", "blocks.0.conv1.weight", "blocks.0.downsample.0.weight", "head.weight"),
)


class Bottleneck(nn.Module):
    """Pre-activation bottleneck with in-place sums, as in many ResNet-v2 codes."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        out += x
        return out


register(
    "preactivation_bottleneck",
    lambda: BlockNet(10, [Bottleneck(10, 4), Bottleneck(10, 5)], 10),
    grows=("stem.0.weight", "blocks.0.conv1.weight", "blocks.0.conv2.weight", "blocks.1.conv3.bias", "head.weight"),
)


@wiring("concat", grows=("left.weight", "right.weight", "fuse.weight", "fc.weight"))
class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 5, 1)
        self.right = nn.Conv2d(3, 9, 3, padding=1)
        self.fuse = nn.Conv2d(14, 7, 1)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), F.relu(self.right(x))], dim=1)
        return self.fc(F.relu(self.fuse(x)).mean((2, 3)))


@wiring("concat_negative_dim", grows=("left.weight", "right.weight", "fuse.weight", "fc.weight"))
class ConcatNegativeDim(nn.Module):
    """Concatenation on dim -3 of images, then on dim -1 of pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.fuse = nn.Conv2d(12, 10, 1)
        self.fc = nn.Linear(22, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.left(x), self.right(x)), -3).relu()
        y = self.fuse(x).sigmoid()
        return self.fc(torch.concat((y.mean((2, 3)), x.amax((2, 3))), axis=-1))


@wiring("concat_with_itself", grows=("conv.weight", "fuse.weight", "fc.weight"))
class ConcatWithItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.fuse = nn.Conv2d(10, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.fuse(torch.cat([x, x.neg()], 1).relu())
        return self.fc(x.relu().mean((2, 3)))


@wiring("concat_plus_residual", grows=("left.weight", "right.weight", "shortcut.weight", "fc.weight"))
class ConcatPlusResidual(nn.Module):
    """A concatenation of 5 and 9 channels meets one conv's 14 in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 5, 1, bias=False)
        self.right = nn.Conv2d(3, 9, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(3, 14, 1, bias=False)
        self.bn = nn.BatchNorm2d(14)
        self.fc = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), self.right(x)], 1) + self.shortcut(x)
        return self.fc(F.relu(self.bn(y)).mean((2, 3)))


@wiring("concat_crossed", expect="partly", grows=("fc.weight",))
class ConcatCrossed(nn.Module):
    """Concatenations with unlike boundaries (5 + 9 and 8 + 6) meet in a sum: common parts 5, 3, 6."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 9, 3, padding=1)
        self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1)
        return self.fc(y.relu().mean((2, 3)))


@wiring("concat_with_input", grows=("conv.weight", "fuse.weight"), pinned=("score.bias",), expect="grows")
class ConcatWithInput(nn.Module):
    """The image itself, whose channels are fixed, is concatenated with features (as in CoordConv and U-Net tails)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fuse = nn.Conv2d(11, 4, 1)
        self.score = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fuse(torch.cat([x, self.conv(x).relu()], 1))
        return self.score(y.relu()).mean((2, 3))


class DenseLayer(nn.Module):
    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(F.relu(self.norm(torch.cat(features, 1))))


@wiring(
    "dense_block",
    grows=("stem.weight", "layers.0.conv.weight", "layers.2.conv.weight", "layers.2.norm.weight", "fc.weight"),
)
class DenseBlock(nn.Module):
    """DenseNet idiom: every layer reads the concatenation of all before it, handed on as a list."""

    def __init__(self, stem: int = 6, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, bias=False)
        self.layers = nn.ModuleList(DenseLayer(stem + i * growth, growth) for i in range(3))
        self.norm = nn.BatchNorm2d(stem + 3 * growth)
        self.transition = nn.Conv2d(stem + 3 * growth, 10, 1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = self.transition(F.relu(self.norm(torch.cat(features, 1))))
        return self.fc(F.avg_pool2d(x, 2).relu().mean((2, 3)))


@wiring("dense_running_concat", grows=("stem.weight", "conv1.weight", "conv2.weight", "fc.weight"))
class DenseRunningConcat(nn.Module):
    """A dense block that concatenates onto one growing tensor: concatenations nest."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.conv1 = nn.Conv2d(5, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(9, 4, 3, padding=1)
        self.fc = nn.Linear(13, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, F.relu(self.conv1(x))], 1)
        x = torch.cat([F.relu(self.conv2(x)), x], 1)
        return self.fc(x.mean((2, 3)))


@wiring("stack_and_sum", grows=("left.weight", "right.weight", "fc.weight"))
class StackAndSum(nn.Module):
    """Branches are stacked on a new dimension that is summed over: a residual sum in disguise."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.left(x), self.right(x).relu()], dim=1).sum(1)
        return self.fc(y.relu().mean((2, 3)))


@wiring("gates_across_branches", grows=("gate.weight", "value.weight", "fc.weight"))
class GatesAcrossBranches(nn.Module):
    """Two branches multiply each other, one of them through a sigmoid, with a highway sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 1)
        self.gate, self.value = nn.Conv2d(10, 10, 1), nn.Conv2d(10, 10, 3, padding=1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.gate(x))
        x = gate * self.value(x).tanh() + (1 - gate) * x
        return self.fc(x.mean((2, 3)))


@wiring("in_place_ops", grows=("conv1.weight", "conv2.weight", "fc.weight"))
class InPlaceOps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu_()
        y = self.conv2(x)
        y += x
        y.mul_(0.5).add_(self.conv3(x))
        return self.fc(F.relu(y, inplace=True).mean((2, 3)))
