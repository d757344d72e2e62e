"""Ops that move channels without arithmetic: split, slice, gate, roll, pad."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.chains import BlockNet
from tests.wirings.registry import CLASSES, conv_bn_relu, register, wiring


class Classifier(nn.Module):
    """Stem conv, then ``move`` of the subclass, then a mixing conv and the classifier."""

    def __init__(self, stem: int, moved: int, hidden: int = 7) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, stem)
        self.mix = nn.Conv2d(moved, hidden, 1)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(self.move(self.stem(x))))
        return self.head(x.mean((2, 3)))

    def move(self, x: Tensor) -> Tensor:
        raise NotImplementedError


MOVED = ("stem.0.weight", "stem.1.weight", "mix.weight", "head.weight")
INNER = ("mix.weight", "head.weight")
"""What can grow even where the moved channels are pinned."""


@wiring("split_sizes", grows=(*MOVED, "conv.weight"))
class SplitSizes(Classifier):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.sizes = [5, 7]
        self.conv = nn.Conv2d(7, 7, 3, padding=1)

    def move(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, dim=1)
        return torch.cat([a, self.conv(b)], 1)


@wiring("split_equal", expect="partly", grows=INNER)
class SplitEqual(Classifier):
    """One integer splits 14 channels into 4 + 4 + 4 + 2: the last part is smaller, and all but it are summed."""

    def __init__(self) -> None:
        super().__init__(14, 6)

    def move(self, x: Tensor) -> Tensor:
        a, b, c, d = x.split(4, dim=1)
        return torch.cat([a + b * c, d], 1)


@wiring("chunk", grows=(*MOVED, "conv.weight"))
class Chunk(Classifier):
    def __init__(self) -> None:
        super().__init__(16, 16)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def move(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return torch.cat((x1, self.conv(x2)), dim=1)


@wiring("chunk_uneven", expect="partly", grows=INNER)
class ChunkUneven(Classifier):
    """8 channels in 3 chunks are 3 + 3 + 2."""

    def __init__(self) -> None:
        super().__init__(8, 5)

    def move(self, x: Tensor) -> Tensor:
        a, b, c = torch.chunk(x, 3, 1)
        return torch.cat([a * b, c], 1)


@wiring("slice", grows=(*MOVED, "conv.weight"))
class Slice(Classifier):
    def __init__(self) -> None:
        super().__init__(14, 14)
        self.conv = nn.Conv2d(9, 9, 3, padding=1)

    def move(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 9:], self.conv(x[:, :9])], 1)


@wiring("slice_from_the_end", grows=MOVED)
class SliceFromTheEnd(Classifier):
    def __init__(self) -> None:
        super().__init__(13, 13)

    def move(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, -4:, ...].sigmoid(), x[:, :-4]], 1)


@wiring("slice_overlapping", expect="partly", grows=INNER)
class SliceOverlapping(Classifier):
    def __init__(self) -> None:
        super().__init__(12, 8)

    def move(self, x: Tensor) -> Tensor:
        return x[:, :8] + x[:, 4:]


@wiring("slice_stepped", expect="partly", grows=INNER)
class SliceStepped(Classifier):
    """Even and odd channels, as in rotary embeddings."""

    def __init__(self) -> None:
        super().__init__(12, 6)

    def move(self, x: Tensor) -> Tensor:
        return x[:, ::2] * x[:, 1::2]


@wiring("select_channel", expect="partly", grows=INNER)
class SelectChannel(Classifier):
    """Channel 2 gates all; a permutation by fancy index and by ``index_select`` follow."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 4, 5]))

    def move(self, x: Tensor) -> Tensor:
        x = x * x[:, 2].sigmoid().unsqueeze(1)
        return x[:, [1, 0, 3, 2, 5, 4, 7, 6]] + x.index_select(1, self.order)


@wiring("narrow", grows=MOVED)
class Narrow(Classifier):
    def __init__(self) -> None:
        super().__init__(11, 11)

    def move(self, x: Tensor) -> Tensor:
        return torch.cat([x.narrow(1, 4, 7), x.narrow(1, 0, 4)], 1)


@wiring("tensor_split_and_flip", expect="partly", grows=INNER)
class TensorSplitAndFlip(Classifier):
    def __init__(self) -> None:
        super().__init__(10, 10)

    def move(self, x: Tensor) -> Tensor:
        a, b = torch.tensor_split(x, (3,), dim=1)
        return torch.cat([a.flip(1), b], 1)


@wiring("glu_functional", grows=MOVED)
class GluFunctional(Classifier):
    def __init__(self) -> None:
        super().__init__(12, 6)

    def move(self, x: Tensor) -> Tensor:
        return F.glu(x, dim=1)


@wiring("glu_manual", grows=MOVED)
class GluManual(Classifier):
    def __init__(self) -> None:
        super().__init__(10, 5)

    def move(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, 1)
        return value * torch.sigmoid(gate)


@wiring("glu_module_and_simple_gate", grows=(*MOVED, "expand.weight"))
class GluModuleAndSimpleGate(Classifier):
    def __init__(self) -> None:
        super().__init__(12, 8)
        self.glu = nn.GLU(dim=1)
        self.expand = nn.Conv2d(6, 16, 1)

    def move(self, x: Tensor) -> Tensor:
        a, b = self.expand(self.glu(x)).chunk(2, dim=1)
        return a * b


@wiring("roll_channels", expect="partly", grows=INNER)
class RollChannels(Classifier):
    def __init__(self) -> None:
        super().__init__(8, 8)

    def move(self, x: Tensor) -> Tensor:
        return x + torch.roll(x, shifts=2, dims=1)


@wiring("spatial_shift", expect="partly", grows=INNER)
class SpatialShift(Classifier):
    """ShiftViT: channel groups move one pixel in four directions, written into a fresh tensor."""

    def __init__(self) -> None:
        super().__init__(10, 10)

    def move(self, x: Tensor) -> Tensor:
        g = x.shape[1] // 5
        out = torch.zeros_like(x)
        out[:, 0:g, :, :-1] = x[:, 0:g, :, 1:]
        out[:, g : g * 2, :, 1:] = x[:, g : g * 2, :, :-1]
        out[:, g * 2 : g * 3, :-1, :] = x[:, g * 2 : g * 3, 1:, :]
        out[:, g * 3 : g * 4, 1:, :] = x[:, g * 3 : g * 4, :-1, :]
        out[:, g * 4 :, :, :] = x[:, g * 4 :, :, :]
        return out


@wiring("roll_space", grows=MOVED)
class RollSpace(Classifier):
    """Swin's cyclic shift: the rolled dims are spatial, and as large as the channels."""

    def __init__(self) -> None:
        super().__init__(6, 6)

    def move(self, x: Tensor) -> Tensor:
        return torch.roll(x, shifts=(-1, 2), dims=(2, 3)) + F.pad(x, (1, 0, 0, 1))[..., 1:, :-1]


class PadBlock(nn.Module):
    """ResNet with option A: the shortcut skips pixels and pads channels with zeros."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(in_channels, hidden, stride=2)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1)
        self.pad = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        return F.relu(self.conv2(self.conv1(x)) + shortcut)


register(
    "pad_channels",
    lambda: BlockNet(6, [PadBlock(6, 9, 12)], 12),
    expect="partly",
    grows=("blocks.0.conv1.0.weight", "blocks.0.conv2.weight"),
)
