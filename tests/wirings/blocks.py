"""Blocks of well-known nets in which several wirings meet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.chains import BlockNet
from tests.wirings.norms import LayerNorm2d
from tests.wirings.registry import CLASSES, conv_bn_relu, features, image, register, wiring


class SqueezeExcite(nn.Module):
    """MobileNetV3's spelling: 1x1 convs on pooled features, hard sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class SqueezeExciteLinear(nn.Module):
    """SENet's spelling: linears and views."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


register(
    "squeeze_excite_convs",
    lambda: BlockNet(12, [SqueezeExcite(12, 4), nn.Conv2d(12, 6, 1), nn.Hardswish()], 6),
    grows=("stem.0.weight", "blocks.0.fc1.weight", "blocks.0.fc2.weight", "blocks.0.fc2.bias", "head.weight"),
)
register(
    "squeeze_excite_linears",
    lambda: BlockNet(10, [SqueezeExciteLinear(10, 4)], 10),
    grows=("stem.0.weight", "blocks.0.fc.0.weight", "blocks.0.fc.2.weight", "head.weight"),
)


class MobileNetV3Block(nn.Module):
    def __init__(self, channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            conv_bn_relu(channels, hidden, 1),
            conv_bn_relu(hidden, hidden, 3, groups=hidden),
            SqueezeExcite(hidden, 4),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.use_res_connect = channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.use_res_connect else self.block(x)


register(
    "mobilenet_v3_blocks",
    lambda: BlockNet(6, [MobileNetV3Block(6, 14, 6), MobileNetV3Block(6, 11, 8)], 8),
    grows=(
        "stem.0.weight",
        "blocks.0.block.1.0.weight",
        "blocks.0.block.2.fc1.weight",
        "blocks.1.block.3.weight",
        "head.weight",
    ),
    idle=("blocks.0.block.4.bias",),
)


class ConvNeXtBlock(nn.Module):
    """Depthwise conv, channels-last linears with layer norm, a scale per channel."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


register(
    "convnext_block",
    lambda: BlockNet(6, [ConvNeXtBlock(6, 14), ConvNeXtBlock(6, 11)], 6),
    grows=(
        "stem.0.weight",
        "blocks.0.dwconv.weight",
        "blocks.0.norm.weight",
        "blocks.0.pwconv1.weight",
        "blocks.1.gamma",
    ),
    mixes=True,
)


class NafBlock(nn.Module):
    """NAFNet: norm by hand, depthwise conv, gate by halves, channel attention, two learned residual scales."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.conv1, self.conv2 = nn.Conv2d(channels, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1))
        self.conv3 = nn.Conv2d(6, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv2(self.conv1(self.norm(x))).chunk(2, dim=1)
        y = a * b
        return x + self.conv3(y * self.attention(y)) * self.beta


register(
    "nafnet_block",
    lambda: BlockNet(8, [NafBlock(8)], 8),
    expect="partly",
    grows=("blocks.0.conv1.weight", "blocks.0.conv2.weight", "blocks.0.attention.1.weight", "blocks.0.conv3.weight"),
    mixes=True,
)


class SelectiveKernel(nn.Module):
    """SKNet: per channel, a softmax over two branches weighs them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList([conv_bn_relu(channels, channels), conv_bn_relu(channels, channels, 5)])
        self.reduce, self.select = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels * 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([path(x) for path in self.paths], dim=1)
        weights = self.select(self.reduce(x.sum(1).mean((2, 3), keepdim=True)).relu())
        b, c, h, w = weights.shape
        weights = torch.softmax(weights.view(b, 2, c // 2, h, w), dim=1)
        return (x * weights).sum(dim=1)


register(
    "selective_kernel",
    lambda: BlockNet(8, [SelectiveKernel(8, 4)], 8),
    grows=(
        "stem.0.weight",
        "blocks.0.paths.1.0.weight",
        "blocks.0.reduce.weight",
        "blocks.0.select.weight",
        "head.weight",
    ),
)


class SplitAttention(nn.Module):
    """ResNeSt: a grouped conv makes two copies of the channels, a softmax over the copies adds them up."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * 2, 3, padding=1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(channels * 2)
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels * 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        b, rc = x.shape[:2]
        x = x.reshape(b, 2, rc // 2, *x.shape[2:])
        gap = x.sum(dim=1).mean((2, 3), keepdim=True)
        weights = self.fc2(self.fc1(gap).relu()).view(b, 1, 2, -1).transpose(1, 2)
        weights = F.softmax(weights, dim=1).reshape(b, 2, rc // 2, 1, 1)
        return (x * weights).sum(dim=1)


register(
    "split_attention",
    lambda: BlockNet(8, [SplitAttention(8, 5), nn.Conv2d(8, 6, 1)], 6),
    expect="partly",
    grows=("blocks.0.fc1.weight", "blocks.1.weight", "head.weight"),
)


class MixerBlock(nn.Module):
    """Token mixing by transposing, then channel mixing."""

    def __init__(self, count: int, width: int, norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width), nn.LayerNorm(width)) if norm else (nn.Identity(), nn.Identity())
        self.tokens = nn.Sequential(nn.Linear(count, 9), nn.GELU(), nn.Linear(9, count))
        self.channels = nn.Sequential(nn.Linear(width, 14), nn.GELU(), nn.Linear(14, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """(B, N tokens, 6) with the number of tokens fixed by the input."""

    def __init__(self, count: int, width: int, norm: bool) -> None:
        super().__init__()
        self.embed, self.block, self.head = (
            nn.Linear(6, width),
            MixerBlock(count, width, norm),
            nn.Linear(width, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


MIXER = ("embed.weight", "block.tokens.0.weight", "block.tokens.0.bias", "block.channels.0.weight", "head.weight")
register(
    "mlp_mixer", lambda: Mixer(5, 8, True), features(5, 6), grows=MIXER, pinned=("block.tokens.2.bias",), mixes=True
)
register("mlp_mixer_square", lambda: Mixer(8, 8, False), features(8, 6), grows=MIXER, pinned=("block.tokens.2.bias",))


@wiring(
    "unet",
    image(3, 8, 6),
    grows=("enc1.0.weight", "enc2.0.weight", "up.weight", "dec.0.weight", "out.weight"),
    pinned=("out.bias",),
)
class UNet(nn.Module):
    """Down, transposed conv up, concatenation with the skip, per-pixel scores."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = conv_bn_relu(3, 6), conv_bn_relu(6, 11)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(11, 7, 2, stride=2)
        self.dec, self.out = conv_bn_relu(13, 9), nn.Conv2d(9, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enc1(x)
        x = self.up(self.enc2(self.pool(skip)))
        return self.out(self.dec(torch.cat((skip, x), dim=1))).mean((2, 3))


@wiring(
    "fpn_concat", image(3, 8, 12), grows=("c1.0.weight", "c2.0.weight", "c3.0.weight", "fuse.weight", "head.weight")
)
class FpnConcat(nn.Module):
    """Three scales brought to one by nn.Upsample and F.interpolate, then concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv_bn_relu(3, 4), conv_bn_relu(4, 6, stride=2), conv_bn_relu(6, 8, stride=2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.fuse, self.head = nn.Conv2d(18, 10, 1), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        c3 = F.interpolate(self.c3(c2), size=c1.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.fuse(torch.cat([c1, self.upsample(c2), c3], 1)).relu().mean((2, 3)))


@wiring(
    "fpn_top_down",
    image(3, 8, 8),
    grows=("c1.0.weight", "c2.0.weight", "inner1.weight", "inner2.weight", "smooth.weight", "head.weight"),
    outputs=2,
)
class FpnTopDown(nn.Module):
    """Lateral 1x1 convs to a common width, sums from the top, one predictor shared by both scales."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv_bn_relu(3, 6, stride=2), conv_bn_relu(6, 10, stride=2)
        self.inner1, self.inner2 = nn.Conv2d(6, 8, 1), nn.Conv2d(10, 8, 1)
        self.smooth, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.c1(x)
        top = self.inner2(self.c2(c1))
        p1 = self.smooth(self.inner1(c1) + F.interpolate(top, scale_factor=2.0))
        return [self.head(p1.relu()), self.head(top.relu())]


@wiring(
    "atrous_pyramid", grows=("stem.0.weight", "branches.0.0.weight", "pooled.1.weight", "project.weight", "head.weight")
)
class AtrousPyramid(nn.Module):
    """DeepLab's pyramid: dilated branches and a globally pooled one, broadcast back over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 4 + d, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(4 + d), nn.ReLU())
            for d in (1, 2)
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 7, 1), nn.ReLU())
        self.project, self.head = nn.Conv2d(18, 9, 1), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = [branch(x) for branch in self.branches]
        parts.append(F.interpolate(self.pooled(x), size=x.shape[-2:], mode="nearest"))
        return self.head(self.project(torch.cat(parts, dim=1)).relu().mean((2, 3)))


class GhostModule(nn.Module):
    """GhostNet: half of the channels from a conv, the rest from a cheap depthwise conv on them, then a literal cut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels, primary = out_channels, (out_channels + 1) // 2
        self.primary = conv_bn_relu(in_channels, primary, 1)
        self.cheap = conv_bn_relu(primary, primary, 3, groups=primary)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        return torch.cat([x1, self.cheap(x1)], dim=1)[:, : self.out_channels, :, :]


register(
    "ghost_even",
    lambda: BlockNet(6, [GhostModule(6, 12), nn.Conv2d(12, 8, 1), nn.ReLU()], 8),
    grows=("stem.0.weight", "blocks.1.weight", "head.weight"),
    expect="partly",
)
register(
    "ghost_odd",
    lambda: BlockNet(6, [GhostModule(6, 11), nn.Conv2d(11, 8, 1), nn.ReLU()], 8),
    grows=("stem.0.weight", "blocks.1.weight", "head.weight"),
    expect="partly",
)


class Res2NetBlock(nn.Module):
    """Channel pieces pass through convs one after the other, each adding the one before."""

    def __init__(self, channels: int, pieces: int = 4) -> None:
        super().__init__()
        self.width = channels // pieces
        self.convs = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(pieces - 1))
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, self.width, 1)
        outs = [pieces[0]]
        for i, conv in enumerate(self.convs):
            outs.append(F.relu(conv(pieces[i + 1] + outs[-1] if i else pieces[1])))
        return self.project(torch.cat(outs, 1)) + x


register(
    "res2net_block",
    lambda: BlockNet(12, [Res2NetBlock(12)], 12),
    expect="partly",
    grows=("head.weight",),
)


class CrossStagePartial(nn.Module):
    """YOLO's C2f: split in two, a chain on one half, everything concatenated as a list."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv_bn_relu(in_channels, 2 * hidden, 1), conv_bn_relu(4 * hidden, out_channels, 1)
        self.m = nn.ModuleList(conv_bn_relu(hidden, hidden) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


register(
    "cross_stage_partial",
    lambda: BlockNet(6, [CrossStagePartial(6, 9, 4)], 9),
    grows=("stem.0.weight", "blocks.0.cv1.0.weight", "blocks.0.m.1.0.weight", "blocks.0.cv2.0.weight", "head.weight"),
)
