"""Random blocks that take channels apart, move them and put them together."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_nets.parts import (
    KERNEL,
    SMALL,
    WIDTH,
    YES_NO,
    Block,
    Size,
    block,
    halved,
    interleave,
    unit,
)


@block("split", how=("split", "chunk", "slice"), cut=(1, 2, 3, 5), swap=YES_NO)
class Split(Block):
    """Two parts of the channels, a conv on one of them, concatenation in either order."""

    def __init__(self, channels: int, size: Size, how: str, cut: int, swap: bool) -> None:
        super().__init__(channels, size)
        self.how, self.swap = how, swap
        self.cut = (channels + 1) // 2 if how == "chunk" else 1 + cut % (channels - 1)
        self.sizes = [self.cut, channels - self.cut]
        self.conv = nn.Conv2d(self.cut, self.cut, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "split":
            a, b = torch.split(x, self.sizes, dim=1)
        elif self.how == "chunk":
            a, b = x.chunk(2, dim=1)
        else:
            a, b = x[:, : self.cut], x[:, self.cut :]
        a = self.conv(a).relu()
        return torch.cat([b, a] if self.swap else [a, b], 1)


@block("drop", cut=(1, 2, 3, 5), front=YES_NO)
class Drop(Block):
    """A slice of the channels goes on, the rest is not used."""

    def __init__(self, channels: int, size: Size, cut: int, front: bool) -> None:
        super().__init__(channels, size)
        self.cut, self.front = (1 + cut % (channels - 2) if channels > 3 else 0), front
        self.out = channels - self.cut, size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.cut :] if self.front else x[:, : x.shape[1] - self.cut, ...]


@block("gated", width=WIDTH, how=("glu", "sigmoid", "product"))
class Gated(Block):
    def __init__(self, channels: int, size: Size, width: int, how: str) -> None:
        super().__init__(channels, size)
        self.out, self.how = (width, size), how
        self.expand = nn.Conv2d(channels, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        if self.how == "glu":
            return F.glu(x, dim=1)
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b) if self.how == "sigmoid" else a * b.tanh()


@block("shuffle", groups=(2, 3), width=SMALL, spelling=("shape", "literal", "module"), direct=YES_NO)
class Shuffle(Block):
    """Channel shuffle behind a 1x1 conv, or directly where the channels divide."""

    def __init__(self, channels: int, size: Size, groups: int, width: int, spelling: str, direct: bool) -> None:
        super().__init__(channels, size)
        self.groups, self.spelling, self.width = groups, spelling, width
        self.expand = nn.Identity()
        if direct and channels % groups == 0:
            self.width = channels // groups
        else:
            self.expand, self.out = nn.Conv2d(channels, groups * width, 1), (groups * width, size)
        self.shuffle = nn.ChannelShuffle(groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        if self.spelling == "module":
            return self.shuffle(x)
        if self.spelling == "shape":
            return interleave(x, self.groups)
        b, _, h, w = x.shape
        x = x.view(b, self.groups, self.width, h, w).transpose(1, 2).contiguous()
        return x.view(b, self.groups * self.width, h, w)


@block("pixel_shuffle", width=SMALL)
class PixelShuffle(Block):
    def __init__(self, channels: int, size: Size, width: int) -> None:
        super().__init__(channels, size)
        small = halved(size)
        self.out = width, (2 * small[0], 2 * small[1])
        self.conv, self.shuffle = nn.Conv2d(channels, 4 * width, 3, 2, 1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))


@block("pixel_unshuffle", width=WIDTH, spelling=("module", "views", "slices"))
class PixelUnshuffle(Block):
    """Space to depth where the size is even and large enough, then a 1x1 conv."""

    def __init__(self, channels: int, size: Size, width: int, spelling: str) -> None:
        super().__init__(channels, size)
        fits = min(size) >= 4 and size[0] % 2 == size[1] % 2 == 0
        self.spelling = spelling if fits else "none"
        self.out = width, (size[0] // 2, size[1] // 2) if fits else size
        self.conv = nn.Conv2d(channels * 4 if fits else channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.spelling == "module":
            x = F.pixel_unshuffle(x, 2)
        elif self.spelling == "views":
            x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, c * 4, h // 2, w // 2)
        elif self.spelling == "slices":
            x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)
        return self.conv(x).relu()


@block("self_concat", how=("negated", "repeat", "interleaved", "stacked"))
class SelfConcat(Block):
    """The channels twice, one after the other or alternating."""

    def __init__(self, channels: int, size: Size, how: str) -> None:
        super().__init__(channels, size)
        self.out, self.how = (2 * channels, size), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "negated":
            return torch.cat((x, -x), -3).relu()
        if self.how == "repeat":
            return x.repeat(1, 2, 1, 1)
        if self.how == "interleaved":
            return x.repeat_interleave(2, dim=1)
        return torch.stack([x, x.tanh()], dim=2).flatten(1, 2)


@block("roll", channels_too=YES_NO)
class Roll(Block):
    def __init__(self, channels: int, size: Size, channels_too: bool) -> None:
        super().__init__(channels, size)
        self.channels_too = channels_too

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_too:
            return x + torch.roll(x, 1, dims=1)
        return x + torch.roll(x, shifts=(1, -1), dims=(2, 3))


@block("pad", extra=(1, 2, 3), front=YES_NO, kernel=KERNEL)
class Pad(Block):
    """A shortcut whose channels are padded with zeros, as in ResNet's option A."""

    def __init__(self, channels: int, size: Size, extra: int, front: bool, kernel: int) -> None:
        super().__init__(channels, size)
        self.out = channels + extra, size
        self.padding = (0, 0, 0, 0, extra, 0) if front else (0, 0, 0, 0, 0, extra)
        self.conv = nn.Conv2d(channels, channels + extra, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu() + F.pad(x, self.padding)


@block("involution")
class Involution(Block):
    """Transposes and views that end where they began."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.shape[2]
        x = x.transpose(1, 3).contiguous().permute(0, 3, 2, 1)
        return x.flatten(2).transpose(1, 2).contiguous().mT.unflatten(-1, (h, -1)).contiguous()


@block("ghost", width=SMALL, odd=YES_NO)
class Ghost(Block):
    """Half of the channels from a conv, half from a depthwise conv on them, cut to a literal width."""

    def __init__(self, channels: int, size: Size, width: int, odd: bool) -> None:
        super().__init__(channels, size)
        self.width = 2 * width - odd
        self.out = self.width, size
        self.primary, self.cheap = unit(channels, width, 1), unit(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], dim=1)[:, : self.width]
