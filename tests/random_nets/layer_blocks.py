"""Random blocks around one kind of layer."""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_nets.parts import (
    ACTIVATION,
    KERNEL,
    LARGEST,
    NORM,
    SMALL,
    WIDTH,
    YES_NO,
    Block,
    Size,
    activation,
    block,
    halved,
    norm_layer,
    unit,
)


@block("conv", width=WIDTH, kernel=KERNEL, norm=NORM, act=ACTIVATION, stride=(1, 2))
class Conv(Block):
    def __init__(self, channels: int, size: Size, width: int, kernel: int, norm: str, act: str, stride: int) -> None:
        super().__init__(channels, size)
        stride = stride if min(size) >= 4 else 1
        self.out = width, halved(size) if stride == 2 else size
        self.layers = unit(channels, width, kernel, norm, act, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@block("depthwise", multiplier=(1, 2), transposed=YES_NO, norm=NORM)
class Depthwise(Block):
    def __init__(self, channels: int, size: Size, multiplier: int, transposed: bool, norm: str) -> None:
        super().__init__(channels, size)
        self.out = channels * multiplier, size
        conv = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = conv(channels, channels * multiplier, 3, padding=1, groups=channels, bias=norm == "none")
        self.norm = norm_layer(norm, channels * multiplier)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm(self.conv(x)))


@block("grouped", groups=(2, 3, 4), inner=(2, 3, 1), outer=(1, 2, 3), norm=NORM, direct=YES_NO)
class Grouped(Block):
    """A grouped conv behind a 1x1 conv, or directly, with as many groups as the channels allow."""

    def __init__(self, channels: int, size: Size, groups: int, inner: int, outer: int, norm: str, direct: bool) -> None:
        super().__init__(channels, size)
        if direct:
            groups, width = gcd(channels, groups), channels
            self.expand = nn.Identity()
        else:
            width = groups * inner
            self.expand = nn.Conv2d(channels, width, 1)
        self.out = groups * outer * 2, size
        self.conv = nn.Conv2d(width, self.out[0], 3, padding=1, groups=groups, bias=norm == "none")
        self.norm = norm_layer(norm, self.out[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.expand(x).relu())).relu()


@block("transposed", width=SMALL, groups=(1, 2), stride=(2, 1))
class Transposed(Block):
    def __init__(self, channels: int, size: Size, width: int, groups: int, stride: int) -> None:
        super().__init__(channels, size)
        groups = gcd(channels, groups)
        stride = stride if 2 * max(size) <= LARGEST else 1
        self.out = width * groups, (stride * size[0], stride * size[1])
        self.conv = nn.ConvTranspose2d(channels, self.out[0], 2 + stride, stride, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


@block("pool", kind=("max", "avg", "adaptive"))
class Pool(Block):
    def __init__(self, channels: int, size: Size, kind: str) -> None:
        super().__init__(channels, size)
        self.pool = nn.Identity()
        if min(size) >= 4:
            self.out = channels, (size[0] // 2, size[1] // 2)
            pools = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2), "adaptive": nn.AdaptiveAvgPool2d(self.out[1])}
            self.pool = pools[kind]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


@block("norm", norm=NORM[1:], act=ACTIVATION)
class NormAct(Block):
    def __init__(self, channels: int, size: Size, norm: str, act: str) -> None:
        super().__init__(channels, size)
        self.norm, self.act = norm_layer(norm, channels), activation(act, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))


@block("squeeze_excite", hidden=SMALL, linear=YES_NO)
class SqueezeExcite(Block):
    def __init__(self, channels: int, size: Size, hidden: int, linear: bool) -> None:
        super().__init__(channels, size)
        self.linear = linear
        layers = [nn.Linear(channels, hidden), nn.Linear(hidden, channels)]
        if not linear:
            layers = [nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)]
        self.reduce, self.expand = layers

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            b, c, _, _ = x.size()
            gate = self.expand(self.reduce(x.mean((2, 3)).view(b, c)).relu()).view(b, c, 1, 1)
        else:
            gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate).expand_as(x)


@block("functional", width=WIDTH, spelling=("conv2d", "linear", "matmul", "einsum", "bmm", "standardised"))
class Functional(Block):
    """A bare parameter meets the channels in one of several spellings."""

    def __init__(self, channels: int, size: Size, width: int, spelling: str) -> None:
        super().__init__(channels, size)
        self.out, self.spelling = (width, size), spelling
        self.weight = nn.Parameter(torch.zeros(width, channels))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        bias = self.bias[:, None, None]
        if self.spelling == "conv2d":
            x = F.conv2d(x, self.weight[:, :, None, None], self.bias)
        elif self.spelling == "linear":
            x = F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        elif self.spelling == "matmul":
            x = (x.flatten(2).transpose(1, 2) @ self.weight.t()).transpose(1, 2).view(b, -1, h, w) + bias
        elif self.spelling == "einsum":
            x = torch.einsum("bchw,oc->bohw", x, self.weight) + bias
        elif self.spelling == "bmm":
            x = torch.bmm(self.weight.expand(b, -1, -1), x.flatten(2)).unflatten(2, (h, w)) + bias
        else:
            weight = (self.weight - self.weight.mean(1, keepdim=True)) / (self.weight.std(1, keepdim=True) + 0.1)
            x = F.conv2d(x, weight[..., None, None], self.bias)
        return F.silu(x)


@block("layer_scale", spelling=("four", "last", "buffer"), kernel=KERNEL)
class LayerScale(Block):
    """A residual conv with a scale per channel."""

    def __init__(self, channels: int, size: Size, spelling: str, kernel: int) -> None:
        super().__init__(channels, size)
        self.last = spelling == "last"
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        shape = (channels,) if self.last else (1, channels, 1, 1)
        if spelling == "buffer":
            self.register_buffer("gamma", torch.rand(shape) + 0.5)
        else:
            self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.last:
            return x + (y.permute(0, 2, 3, 1) * self.gamma).permute(0, 3, 1, 2)
        return x + y * self.gamma


@block("attention", heads=(2, 1, 3), head_dim=(2, 3, 4), fused=YES_NO, norm=("none", "none", "layer"))
class Attention(Block):
    """Attention over pixels with a residual sum; the inner width is heads x head width."""

    def __init__(self, channels: int, size: Size, heads: int, head_dim: int, fused: bool, norm: str) -> None:
        super().__init__(channels, size)
        self.heads, self.head_dim, self.fused = heads, head_dim, fused
        self.norm = nn.LayerNorm(channels) if norm == "layer" else nn.Identity()
        self.qkv = nn.Linear(channels, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(tokens)).reshape(b, h * w, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1) @ v
        tokens = tokens + self.proj(y.transpose(1, 2).reshape(b, h * w, -1))
        return tokens.transpose(1, 2).reshape(b, c, h, w)


@block("channels_last_mlp", hidden=WIDTH, norm=("none", "none", "layer"))
class ChannelsLastMlp(Block):
    """ConvNeXt's inner part."""

    def __init__(self, channels: int, size: Size, hidden: int, norm: str) -> None:
        super().__init__(channels, size)
        self.norm = nn.LayerNorm(channels) if norm == "layer" else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(self.norm(x.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


@block("token_mixing", hidden=SMALL)
class TokenMixing(Block):
    """MLP-Mixer's transposed half: its outer width is the number of pixels."""

    def __init__(self, channels: int, size: Size, hidden: int) -> None:
        super().__init__(channels, size)
        self.fc1, self.fc2 = nn.Linear(size[0] * size[1], hidden), nn.Linear(hidden, size[0] * size[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(x.flatten(2)))).view_as(x)


@block("span", kind=("softmax", "mean", "max"))
class Span(Block):
    """A function over the channels: they have to stay as they are."""

    def __init__(self, channels: int, size: Size, kind: str) -> None:
        super().__init__(channels, size)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "softmax":
            return x + x.softmax(dim=1)
        if self.kind == "mean":
            return x - x.mean(1, keepdim=True)
        return x * x.amax(dim=1, keepdim=True).sigmoid()
