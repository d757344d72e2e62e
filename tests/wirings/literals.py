"""Widths written as numbers into a forward: each has to follow when the channels it stands for grow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.registry import CLASSES, conv_bn_relu, features, image, register, wiring

AROUND = ("stem.0.weight", "mix.weight", "head.weight")


class WithLiteral(nn.Module):
    """Conv to 12 channels, the subclass's ``forward`` with its literals, then ``finish``."""

    def __init__(self, width: int = 12, moved: int = 12) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, width)
        self.mix = nn.Conv2d(moved, 7, 1)
        self.head = nn.Linear(7, CLASSES)

    def finish(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x).relu().mean((2, 3)))


@wiring("literal_view", grows=AROUND)
class LiteralView(WithLiteral):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        x = x.view(b, 2, 6, h, w).flip(1)
        return self.finish(x.reshape(b, 12, h, w))


@wiring("literal_flatten", image(3, 6, 6), grows=("conv.weight", "fc.weight"))
class LiteralFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.fc = nn.Linear(12 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().view(-1, 12 * 4 * 4))


@wiring("literal_split", grows=(*AROUND, "conv.weight"))
class LiteralSplit(WithLiteral):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), [7, 5], dim=1)
        return self.finish(torch.cat([self.conv(b), a], 1))


@wiring("literal_slice", grows=AROUND)
class LiteralSlice(WithLiteral):
    def __init__(self) -> None:
        super().__init__(14, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.finish(torch.cat([x[:, 7:], x[:, :7].sigmoid()], 1))


@wiring("literal_unflatten", grows=AROUND)
class LiteralUnflatten(WithLiteral):
    def __init__(self) -> None:
        super().__init__(12, 6)
        self.unflatten = nn.Unflatten(1, (2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.unflatten(self.stem(x)).sum(1))


@wiring("literal_zeros", grows=("stem.0.weight", "head.weight"))
class LiteralZeros(nn.Module):
    """A state that starts at zeros of a literal width, and a literal ``expand``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 12)
        self.bias = nn.Parameter(torch.zeros(12, 1, 1))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = self.stem(x) + self.bias.expand(12, h, w)
        state = torch.zeros(b, 12, device=x.device)
        return self.head(0.5 * state + x.mean((2, 3)))


@wiring("literal_layer_norm", features(4, 6), grows=("embed.weight", "weight", "bias", "head.weight"), mixes=True)
class LiteralLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.weight, self.bias = nn.Parameter(torch.ones(12)), nn.Parameter(torch.zeros(12))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(self.embed(x), (12,), self.weight, self.bias)
        return self.head(x.relu().mean(1))


@wiring("literal_group_norm", grows=(*AROUND, "weight"))
class LiteralGroupNorm(WithLiteral):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(12)), nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(F.group_norm(self.stem(x), 3, self.weight, self.bias).relu())


@wiring("literal_conv_groups", grows=(*AROUND, "grouped", "depthwise"))
class LiteralConvGroups(WithLiteral):
    def __init__(self) -> None:
        super().__init__(12, 8)
        self.depthwise = nn.Parameter(torch.zeros(12, 1, 3, 3))
        self.grouped = nn.Parameter(torch.zeros(8, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.stem(x), self.depthwise, padding=1, groups=12)
        return self.finish(F.conv2d(x.relu(), self.grouped, groups=4))


@wiring("literal_pixel_shuffle", image(3, 4, 5), grows=AROUND)
class LiteralDepthToSpace(WithLiteral):
    """Depth to space with every number written out but the batch."""

    def __init__(self) -> None:
        super().__init__(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).view(-1, 3, 2, 2, 4, 5).permute(0, 1, 4, 2, 5, 3)
        return self.finish(x.reshape(-1, 3, 8, 10))


@wiring("literal_from_attributes", grows=AROUND)
class LiteralFromAttributes(WithLiteral):
    """Widths kept as attributes: of the module itself, and of a child (``conv.out_channels``)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = self.stem(x).reshape(b, 3, self.width // 3, h * w)
        return self.finish(x.reshape(b, self.stem[0].out_channels, h, w))


@wiring("literal_scale_by_width", expect="partly", grows=("head.weight",), mixes=True)
class LiteralScaleByWidth(WithLiteral):
    """A width as a plain number in arithmetic: where it follows the channels, the target's values change."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.finish(x / x.shape[1] ** 0.5 + 1 / 12)


@wiring("literal_assertion", grows=AROUND)
class LiteralAssertion(WithLiteral):
    """User code that checks its widths: the check must hold, or be lifted, at every width."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        torch._assert(x.shape[1] % 3 == 0, "channels must be a multiple of 3")
        b, c, h, w = x.shape
        return self.finish(x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w))


class LiteralBlock(nn.Module):
    """A view with literals in a module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 4, 3, x.shape[2], x.shape[3]).amax(1)


def _net_with_block(block: Any) -> Any:
    def build() -> nn.Module:
        return nn.Sequential(
            conv_bn_relu(3, 12),
            block(),
            nn.Conv2d(3, 8, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )

    return build


register("literal_in_child", _net_with_block(LiteralBlock), grows=("0.0.weight", "2.weight", "6.weight"))


class OpaqueLiteralBlock(LiteralBlock):
    """The same where no symbolic trace can follow: the number cannot be rewritten, so the channels stay."""

    def forward(self, *args: Any) -> Tensor:
        (x,) = args
        if float(x.detach().abs().max()) < 0:
            raise ValueError("negative absolute value")
        return super().forward(x)


register(
    "literal_in_opaque_child",
    _net_with_block(OpaqueLiteralBlock),
    expect="partly",
    grows=("2.weight", "6.weight"),
)
