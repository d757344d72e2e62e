"""Random blocks with several paths: sums, concatenations, products, shared modules, nested blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_nets.parts import (
    ACTIVATION,
    KERNEL,
    NESTED,
    NORM,
    SMALL,
    WIDTH,
    YES_NO,
    Block,
    BlockSpec,
    Size,
    block,
    make,
    match,
    norm_layer,
    unit,
)


@block("residual", hidden=WIDTH, kernel=KERNEL, norm=NORM, act=ACTIVATION, in_place=YES_NO)
class Residual(Block):
    def __init__(
        self, channels: int, size: Size, hidden: int, kernel: int, norm: str, act: str, in_place: bool
    ) -> None:
        super().__init__(channels, size)
        self.in_place = in_place
        self.body = unit(channels, hidden, kernel, norm, act)
        self.project, self.norm = nn.Conv2d(hidden, channels, 1, bias=norm == "none"), norm_layer(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.project(self.body(x)))
        if self.in_place:
            y += x
            return y.relu_()
        return x + y


@block("bottleneck", width=WIDTH, hidden=SMALL, groups=(1, 2), norm=NORM)
class Bottleneck(Block):
    """1x1, 3x3 (grouped), 1x1 and a projected shortcut where the width changes."""

    def __init__(self, channels: int, size: Size, width: int, hidden: int, groups: int, norm: str) -> None:
        super().__init__(channels, size)
        self.out, hidden = (width, size), hidden * groups
        self.body = nn.Sequential(
            unit(channels, hidden, 1, norm),
            unit(hidden, hidden, 3, norm, groups=groups),
            nn.Conv2d(hidden, width, 1, bias=False),
        )
        self.norm, self.shortcut = norm_layer(norm, width), match((channels, size), width, size)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.body(x)) + self.shortcut(x))


@block("inverted", hidden=WIDTH, excite=YES_NO, norm=NORM)
class Inverted(Block):
    """MobileNet's block with optional squeeze-excite."""

    def __init__(self, channels: int, size: Size, hidden: int, excite: bool, norm: str) -> None:
        super().__init__(channels, size)
        self.expand = unit(channels, hidden, 1, norm, "hardswish")
        self.spatial = unit(hidden, hidden, 3, norm, "relu6", groups=hidden)
        self.excite = None
        if excite:
            self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden, 1), nn.Hardsigmoid())
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.spatial(self.expand(x))
        if self.excite is not None:
            y = y * self.excite(y)
        return x + self.project(y)


@block("concat", left=WIDTH, right=WIDTH, negative=YES_NO, with_input=YES_NO)
class Concat(Block):
    def __init__(self, channels: int, size: Size, left: int, right: int, negative: bool, with_input: bool) -> None:
        super().__init__(channels, size)
        self.out = left + right + (channels if with_input else 0), size
        self.dim, self.with_input = -3 if negative else 1, with_input
        self.left, self.right = unit(channels, left, 1), nn.Conv2d(channels, right, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.left(x), self.right(x)]
        if self.with_input:
            parts.insert(1, x)
        return torch.cat(parts, dim=self.dim)


@block("dense", growth=SMALL, layers=(1, 2, 3), running=YES_NO)
class Dense(Block):
    """DenseNet's block; the concatenation is made anew from a list, or kept as one growing tensor."""

    def __init__(self, channels: int, size: Size, growth: int, layers: int, running: bool) -> None:
        super().__init__(channels, size)
        self.out, self.running = (channels + growth * layers, size), running
        widths = [channels + i * growth for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        if self.running:
            for norm, conv in zip(self.norms, self.convs, strict=True):
                x = torch.cat([conv(F.relu(norm(x))), x], 1)
            return x
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return torch.cat(features, 1)


@block("gates", width=WIDTH, highway=YES_NO)
class Gates(Block):
    """Two branches multiply each other."""

    def __init__(self, channels: int, size: Size, width: int, highway: bool) -> None:
        super().__init__(channels, size)
        width = channels if highway else width
        self.out, self.highway = (width, size), highway
        self.value, self.gate = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        y = self.value(x).tanh() * gate
        return y + (1 - gate) * x if self.highway else y


@block("selective", hidden=SMALL)
class Selective(Block):
    """Per channel, a softmax over two branches weighs them."""

    def __init__(self, channels: int, size: Size, hidden: int) -> None:
        super().__init__(channels, size)
        self.paths = nn.ModuleList([unit(channels, channels, 1), unit(channels, channels, 3)])
        self.reduce, self.select = nn.Linear(channels, hidden), nn.Linear(hidden, channels * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([path(x) for path in self.paths], dim=1)
        weights = self.select(F.relu(self.reduce(x.sum(1).mean((2, 3)))))
        weights = weights.view(x.shape[0], 2, -1).softmax(dim=1)
        return (x * weights[..., None, None]).sum(1)


@block("pyramid", width=WIDTH, mode=("nearest", "bilinear"), add=YES_NO)
class Pyramid(Block):
    """Down, conv, up to the old size, then a concatenation with the input or a sum with it."""

    def __init__(self, channels: int, size: Size, width: int, mode: str, add: bool) -> None:
        super().__init__(channels, size)
        width = channels if add else width
        self.out, self.mode, self.add = (channels if add else channels + width, size), mode, add
        self.conv = unit(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.max_pool2d(x, 2))
        align = False if self.mode == "bilinear" else None
        y = F.interpolate(y, size=x.shape[-2:], mode=self.mode, align_corners=align)
        return x + y if self.add else torch.cat([y, x], 1)


@block("shared", hidden=WIDTH, times=(2, 3))
class Shared(Block):
    """The same two convs several times over."""

    def __init__(self, channels: int, size: Size, hidden: int, times: int) -> None:
        super().__init__(channels, size)
        self.times = times
        self.inner, self.outer = nn.Conv2d(channels, hidden, 3, padding=1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.outer(self.inner(x).relu()).tanh()
        return x


@block("opaque", width=WIDTH)
class Opaque(Block):
    """A forward that fx cannot follow: ``*args`` and a branch on the data."""

    def __init__(self, channels: int, size: Size, width: int) -> None:
        super().__init__(channels, size)
        self.out = width, size
        self.conv = nn.Conv2d(channels, width, 1)

    def forward(self, *args: Any) -> Tensor:
        (x,) = args
        if x.isnan().any():
            raise FloatingPointError("not a number")
        return self.conv(x).relu()


@block("skip", body=NESTED)
class Skip(Block):
    """A residual sum around any block."""

    def __init__(self, channels: int, size: Size, body: BlockSpec) -> None:
        super().__init__(channels, size)
        self.body = make(body, channels, size)
        self.match = match(self.body.out, channels, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.match(self.body(x))


@block("twice", body=NESTED)
class Twice(Block):
    """Any block applied two times, with a return to the first shape between them."""

    def __init__(self, channels: int, size: Size, body: BlockSpec) -> None:
        super().__init__(channels, size)
        self.body = make(body, channels, size)
        self.out = self.body.out
        self.match = match(self.body.out, channels, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.match(self.body(x)))


@block("parallel", left=NESTED, right=NESTED, join=("cat", "add", "multiply"))
class Parallel(Block):
    """Any two blocks side by side."""

    def __init__(self, channels: int, size: Size, left: BlockSpec, right: BlockSpec, join: str) -> None:
        super().__init__(channels, size)
        self.left, self.right, self.join = make(left, channels, size), make(right, channels, size), join
        width, size = self.left.out
        self.match = match(self.right.out, self.right.out[0] if join == "cat" else width, size)
        self.out = width + self.right.out[0] if join == "cat" else width, size

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.match(self.right(x))
        if self.join == "cat":
            return torch.cat([a, b], 1)
        return a + b if self.join == "add" else a * b.sigmoid()
