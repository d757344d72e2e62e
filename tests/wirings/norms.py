"""Normalisation: per channel (nothing mixes) and across channels (it does)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.chains import BlockNet
from tests.wirings.registry import CLASSES, features, register, wiring


def _norm_net(norm: Any) -> Any:
    """Conv, the norm on 8 channels, ReLU, conv: a factory."""
    return lambda: BlockNet(
        6, [nn.Conv2d(6, 8, 3, padding=1, bias=False), norm(), nn.ReLU(), nn.Conv2d(8, 9, 1), nn.ReLU()], 9
    )


AROUND_NORM = ("stem.0.weight", "blocks.0.weight", "blocks.3.weight", "head.weight")
AFTER_NORM = ("stem.0.weight", "blocks.3.weight", "head.weight")

register("batch_norm_affine_false", _norm_net(lambda: nn.BatchNorm2d(8, affine=False)), grows=AROUND_NORM)
register("batch_norm_no_statistics", _norm_net(lambda: nn.BatchNorm2d(8, track_running_stats=False)), grows=AROUND_NORM)
register("batch_norm_cumulative", _norm_net(lambda: nn.BatchNorm2d(8, momentum=None)), grows=AROUND_NORM)
register(
    "batch_norm_bare", _norm_net(lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False)), grows=AROUND_NORM
)
register("instance_norm", _norm_net(lambda: nn.InstanceNorm2d(8)), grows=AROUND_NORM)
register(
    "instance_norm_affine",
    _norm_net(lambda: nn.InstanceNorm2d(8, affine=True)),
    grows=(*AROUND_NORM, "blocks.1.weight"),
)
register(
    "instance_norm_statistics",
    _norm_net(lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    grows=(*AROUND_NORM, "blocks.1.weight"),
)
register("group_norm", _norm_net(lambda: nn.GroupNorm(2, 8)), grows=(*AROUND_NORM, "blocks.1.weight"))
register("group_norm_per_channel", _norm_net(lambda: nn.GroupNorm(8, 8)), grows=(*AROUND_NORM, "blocks.1.weight"))
register("group_norm_one_group", _norm_net(lambda: nn.GroupNorm(1, 8)), expect="partly", grows=AFTER_NORM, mixes=True)
register("group_norm_not_affine", _norm_net(lambda: nn.GroupNorm(4, 8, affine=False)), grows=AROUND_NORM)
register(
    "local_response_norm",
    _norm_net(lambda: nn.LocalResponseNorm(3, alpha=0.5)),
    expect="partly",
    grows=AFTER_NORM,
    mixes=True,
)
register(
    "layer_norm_over_image", _norm_net(lambda: nn.LayerNorm([8, 6, 7])), expect="partly", grows=AFTER_NORM, mixes=True
)


def _layer_norm_mlp(norm: Any) -> Any:
    return lambda: nn.Sequential(
        nn.Linear(6, 10, bias=False), norm(10), nn.GELU(), nn.Linear(10, 7), nn.SiLU(), nn.Linear(7, CLASSES)
    )


register(
    "layer_norm_mlp",
    _layer_norm_mlp(nn.LayerNorm),
    features(6),
    grows=("0.weight", "1.weight", "1.bias", "3.weight", "5.weight"),
    mixes=True,
)
register(
    "rms_norm_mlp",
    _layer_norm_mlp(nn.RMSNorm),
    features(4, 6),
    grows=("0.weight", "1.weight", "3.weight"),
    mixes=True,
    expect="grows",
)
register(
    "layer_norm_plain",
    _layer_norm_mlp(lambda width: nn.LayerNorm(width, elementwise_affine=False)),
    features(6),
    grows=("0.weight", "3.weight"),
    mixes=True,
)


class LayerNorm2d(nn.Module):
    """Channels-first layer norm, written out, as in ConvNeXt and NAFNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class LayerNormPermuted(nn.LayerNorm):
    """Channels-first layer norm by way of channels-last, as in torchvision and timm."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class RmsNormByHand(nn.Module):
    """LLaMA's norm over the last dim."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class GlobalResponseNorm(nn.Module):
    """ConvNeXt-V2's norm: energies per channel, divided by their mean over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        energy = energy / (energy.mean(dim=1, keepdim=True) + 1e-6)
        return self.gamma * (x * energy) + self.beta + x


class FrozenBatchNorm(nn.Module):
    """Detection's batch norm: nothing but buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, variance = self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class GroupNormByHand(nn.Module):
    """Two groups by a view, variance within each: grows by adding groups, if at all."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, 2, c // 2, h, w)
        variance, mean = torch.var_mean(x, dim=(2, 3, 4), keepdim=True, correction=0)
        return ((x - mean) * (variance + 1e-5).rsqrt()).reshape(b, c, h, w)


register("layer_norm2d_by_hand", _norm_net(lambda: LayerNorm2d(8)), expect="partly", grows=AFTER_NORM, mixes=True)
register(
    "layer_norm2d_permuted",
    _norm_net(lambda: LayerNormPermuted(8)),
    grows=(*AROUND_NORM, "blocks.1.weight"),
    mixes=True,
)
register(
    "global_response_norm", _norm_net(lambda: GlobalResponseNorm(8)), expect="partly", grows=AFTER_NORM, mixes=True
)
register("frozen_batch_norm", _norm_net(lambda: FrozenBatchNorm(8)), grows=AROUND_NORM)
register("group_norm_by_hand", _norm_net(GroupNormByHand), expect="partly", grows=AFTER_NORM, mixes=True)
register(
    "rms_norm_by_hand", _layer_norm_mlp(RmsNormByHand), features(4, 6), expect="partly", grows=("5.weight",), mixes=True
)


@wiring("batch_norm_on_sequences", features(4, 9), grows=("conv.weight", "norm.weight", "fc.weight"))
class BatchNormOnSequences(nn.Module):
    """BatchNorm1d on (B, C, L), where L equals C."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 9, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(9)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean(-1))


@wiring("cosine_classifier", features(6), expect="partly", grows=("hidden.weight",), mixes=True)
class CosineClassifier(nn.Module):
    """Features and class vectors are scaled to length 1 before they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.embed = nn.Linear(6, 11), nn.Linear(11, 8)
        self.classes = nn.Parameter(torch.zeros(CLASSES, 8))
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.hidden(x).relu())
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.classes, dim=-1))
