"""Ops that refactor channels: shuffles, pixel shuffles, flattening, transposing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.chains import BlockNet
from tests.wirings.channel_moves import INNER, MOVED, Classifier
from tests.wirings.registry import CLASSES, image, register, wiring


@wiring("shuffle_literal", grows=MOVED)
class ShuffleLiteral(Classifier):
    def __init__(self) -> None:
        super().__init__(12, 12)

    def move(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = x.view(b, 2, 6, h, w)
        return x.transpose(1, 2).contiguous().view(b, 12, h, w)


@wiring("shuffle_from_shape", grows=MOVED)
class ShuffleFromShape(Classifier):
    def __init__(self) -> None:
        super().__init__(15, 15)
        self.groups = 3

    def move(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        x = x.view(b, self.groups, c // self.groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)


@wiring("shuffle_module", expect="partly", grows=INNER)
class ShuffleModule(Classifier):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.shuffle = nn.ChannelShuffle(2)

    def move(self, x: Tensor) -> Tensor:
        return self.shuffle(x)


class Shuffle(nn.Module):
    """Channel shuffle without parameters, usable at any width."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@wiring("shuffle_shared_at_two_widths", grows=("mix.weight", "head.weight", "wide.weight"))
class ShuffleSharedAtTwoWidths(Classifier):
    """One shuffle module serves 8 and 12 channels: what is rewritten in it must not fix either."""

    def __init__(self) -> None:
        super().__init__(8, 12)
        self.shuffle = Shuffle()
        self.wide = nn.Conv2d(8, 12, 1)

    def move(self, x: Tensor) -> Tensor:
        return self.shuffle(self.wide(self.shuffle(x)).relu())


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half passes, half is transformed, concatenation, shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )
        self.shuffle = Shuffle()

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return self.shuffle(torch.cat((x1, self.branch(x2)), dim=1))


register(
    "shufflenet_units",
    lambda: BlockNet(12, [ShuffleUnit(12), ShuffleUnit(12)], 12),
    grows=("stem.0.weight", "blocks.0.branch.0.weight", "blocks.1.branch.3.weight", "head.weight"),
    idle=("blocks.0.branch.4.bias", "blocks.1.branch.4.bias"),
)


@wiring("pixel_shuffle", image(3, 4, 5), grows=MOVED)
class PixelShuffle(Classifier):
    def __init__(self) -> None:
        super().__init__(24, 6)
        self.shuffle = nn.PixelShuffle(2)

    def move(self, x: Tensor) -> Tensor:
        return self.shuffle(x)


@wiring("pixel_unshuffle", image(3, 8, 6), grows=MOVED)
class PixelUnshuffle(Classifier):
    def __init__(self) -> None:
        super().__init__(5, 20)

    def move(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


@wiring("space_to_depth_by_views", image(3, 8, 6), grows=MOVED)
class SpaceToDepthByViews(Classifier):
    """Offsets become the outermost part of the channels, the other way round than in pixel unshuffle."""

    def __init__(self) -> None:
        super().__init__(5, 20)

    def move(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
        return x.view(n, c * 4, h // 2, w // 2)


@wiring("space_to_depth_by_slices", image(3, 8, 6), grows=MOVED)
class SpaceToDepthBySlices(Classifier):
    """YOLO's focus layer."""

    def __init__(self) -> None:
        super().__init__(4, 16)

    def move(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


@wiring("flatten_to_linear", image(3, 6, 6), grows=("conv.weight", "fc1.weight", "fc2.weight"))
class FlattenToLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.fc1 = nn.Linear(7 * 4 * 4, 9)
        self.fc2 = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(x).relu(), 1)
        return self.fc2(self.fc1(x).relu())


@wiring("flatten_channels_last", image(3, 6, 6), grows=("conv.weight", "fc1.weight", "fc2.weight"))
class FlattenChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc1 = nn.Linear(6 * 4 * 4, 8)
        self.fc2 = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().permute(0, 2, 3, 1)
        x = x.reshape(x.shape[0], -1)
        return self.fc2(self.fc1(x).relu())


@wiring("channels_last_memory", grows=MOVED)
class ChannelsLastMemory(Classifier):
    def __init__(self) -> None:
        super().__init__(6, 6)

    def move(self, x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)
        return (x.movedim(1, -1) * 0.5).permute(0, 3, 1, 2).contiguous()


@wiring("involution_of_views", grows=MOVED)
class InvolutionOfViews(Classifier):
    """Non-contiguous views there and back again: transpose, swapaxes, flatten, unflatten, unbind."""

    def __init__(self) -> None:
        super().__init__(8, 8)

    def move(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        rows = x.transpose(1, 3).unbind(1)
        x = torch.stack(rows, 1).swapaxes(1, 3)
        return x.flatten(2).transpose(1, 2).mT.unflatten(2, (h, w))


@wiring("repeat_channels", expect="partly", grows=INNER)
class RepeatChannels(Classifier):
    def __init__(self) -> None:
        super().__init__(5, 20)

    def move(self, x: Tensor) -> Tensor:
        return torch.cat([x.repeat(1, 2, 1, 1), x.repeat_interleave(2, dim=1)], 1)


@wiring("stack_interleaved", grows=MOVED)
class StackInterleaved(Classifier):
    """Two branches interleave channel by channel."""

    def __init__(self) -> None:
        super().__init__(6, 12)

    def move(self, x: Tensor) -> Tensor:
        return torch.stack([x, x.sigmoid()], dim=2).flatten(1, 2)
