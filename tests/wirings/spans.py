"""Functions that span channels: growing them would change the target's own values, so they must stay as they are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.registry import CLASSES, conv_bn_relu, image, register, wiring


class Spanning(nn.Module):
    """Conv to 8 channels, ``span`` across them, conv, classifier. ``span`` keeps the shape (B, 8, H, W)."""

    def __init__(self, span: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.span = span
        self.mix = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.span(self.conv(x))
        return self.fc(self.mix(x).relu().mean((2, 3)))


class Call(nn.Module):
    """A function from this module as a module, so that each net can be copied and pickled."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _softmax(x: Tensor) -> Tensor:
    return F.softmax(x, dim=1) * x


def _log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1)


def _mean(x: Tensor) -> Tensor:
    return x - x.mean(dim=1, keepdim=True)


def _sum(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True).tanh() * x


def _amax(x: Tensor) -> Tensor:
    return x / (x.abs().amax(dim=-3, keepdim=True) + 1)


def _max(x: Tensor) -> Tensor:
    values, _ = torch.max(x, dim=1, keepdim=True)
    return x.sigmoid() * values


def _sort(x: Tensor) -> Tensor:
    return x.sort(dim=1, descending=True).values


def _topk(x: Tensor) -> Tensor:
    return x * (x >= x.topk(3, dim=1).values[:, -1:])


def _cumsum(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(dim=1)


def _std(x: Tensor) -> Tensor:
    return x / (x.std(dim=1, keepdim=True) + 1)


def _product(x: Tensor) -> Tensor:
    return x + x.sigmoid().prod(dim=1, keepdim=True)


for _name, _function in {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "mean": _mean,
    "sum": _sum,
    "amax": _amax,
    "max": _max,
    "sort": _sort,
    "topk": _topk,
    "cumsum": _cumsum,
    "std": _std,
    "prod": _product,
}.items():
    register(
        f"{_name}_over_channels",
        lambda function=_function: Spanning(Call(function)),
        expect="partly",
        grows=("fc.weight",),
        # a mean or a deviation alone may be taken for a norm's statistic, which may grow and then mixes
        mixes=_name in ("mean", "std"),
        pinned=() if _name in ("mean", "std") else ("conv.weight", "conv.bias"),
        # flip comes before cumsum, and either may be named
        reason_contains="" if _name in ("cumsum", "mean", "std") else _name.replace("log_", ""),
    )


class SpatialAttention(nn.Module):
    """CBAM's second half: mean and max over the channels, a conv on the two maps, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.conv(maps))


register(
    "cbam_spatial_attention",
    lambda: Spanning(SpatialAttention()),
    expect="partly",
    grows=("fc.weight",),
    pinned=("conv.weight", "conv.bias", "span.conv.weight"),
)


class EfficientChannelAttention(nn.Module):
    """ECA: a 1-D conv slides along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        y = self.conv(y).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


register(
    "eca_conv_over_channels",
    lambda: Spanning(EfficientChannelAttention()),
    expect="partly",
    grows=("fc.weight",),
    pinned=("conv.weight", "conv.bias", "span.conv.weight"),
)


@wiring("nothing_to_grow", expect="pinned", pinned=("scale", "fc.weight", "fc.bias"))
class NothingToGrow(nn.Module):
    """Inputs and outputs only: the one matrix lies between the image's channels and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)) * self.scale)


@wiring("sum_with_the_input", expect="partly", grows=("hidden.0.weight",), pinned=("project.bias",))
class SumWithTheInput(nn.Module):
    """A residual sum with the image ties the block's output to the image's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = conv_bn_relu(3, 8)
        self.project = nn.Conv2d(8, 3, 1)
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.hidden(x))
        return self.fc(x.mean((2, 3)))


@wiring(
    "channels_meet_space", image(3, 6, 6), expect="partly", grows=("fc.weight",), pinned=("conv.weight", "conv.bias")
)
class ChannelsMeetSpace(nn.Module):
    """The Gram matrix of 6 channels is added to an image of 6 x 6 pixels: channels and rows are one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.mix = nn.Conv2d(1, 7, 1)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2)
        gram = (y @ y.transpose(1, 2) / y.shape[-1]).unsqueeze(1)
        return self.fc(self.mix(gram + x.mean(1, keepdim=True)).relu().mean((2, 3)))
