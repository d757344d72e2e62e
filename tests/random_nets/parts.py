"""What every random block is made of: the base class, the table of kinds with their options, norms and activations."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
BlockSpec = tuple[str, dict[str, Any]]
Kind = TypeVar("Kind", bound="type[Block]")

WIDTH = (4, 2, 3, 5, 6, 8, 9, 12)
SMALL = (2, 3, 4, 5)
KERNEL = (1, 3)
NORM = ("none", "batch", "batch", "instance", "group", "layer")
ACTIVATION = ("relu", "silu", "hardswish", "prelu", "gelu", "relu6")
YES_NO = (False, True)
NESTED = ("a block of another kind",)
"""In place of options: the value is a block that nests none itself."""

MIXING = frozenset({"layer", "standardised", "mean"})
"""Option values under which one channel depends on all the others, by a statistic that a compiler may let grow."""

LARGEST = 8
"""No feature map gets taller or wider than this."""


class Block(nn.Module):
    """Maps (B, channels, *size) to (B, *out): ``out`` is (channels, (height, width)), set in ``__init__``."""

    out: tuple[int, Size]

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.out = channels, size


KINDS: dict[str, type[Block]] = {}
OPTIONS: dict[str, dict[str, Sequence[Any]]] = {}


def block(kind: str, /, **options: Sequence[Any]) -> Callable[[Kind], Kind]:
    """Class decorator: enter a block class with the values each of its arguments may take, the simplest first."""

    def add(cls: Kind) -> Kind:
        KINDS[kind], OPTIONS[kind] = cls, options
        return cls

    return add


def make(spec: BlockSpec, channels: int, size: Size) -> Block:
    """The block described by ``spec`` for inputs of ``channels`` and ``size``."""
    kind, arguments = spec
    return KINDS[kind](channels, size, **arguments)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """A normalisation layer on (B, channels, H, W)."""
    if kind == "group":  # groups of more than one channel where possible; one group would mix all channels
        return nn.GroupNorm(2 if channels % 2 == 0 else channels, channels)
    makers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "batch": lambda: nn.BatchNorm2d(channels),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=True),
        "layer": lambda: LayerNorm2d(channels),
    }
    return makers[kind]()


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def activation(kind: str, channels: int) -> nn.Module:
    """A nonlinearity; "prelu" has a slope per channel."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace=True),
        "silu": nn.SiLU,
        "hardswish": nn.Hardswish,
        "prelu": lambda: nn.PReLU(channels),
        "gelu": nn.GELU,
        "relu6": nn.ReLU6,
    }
    return makers[kind]()


def unit(
    channels: int,
    width: int,
    kernel: int = 3,
    norm_kind: str = "batch",
    act: str = "relu",
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Conv, norm, activation; with the conv's bias where no norm follows."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=norm_kind == "none"),
        norm_layer(norm_kind, width),
        activation(act, width),
    )


def halved(size: Size) -> Size:
    """The size after a stride of 2 with padding."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def match(out: tuple[int, Size], channels: int, size: Size) -> nn.Module:
    """Layers that bring a block's output to ``channels`` and ``size``: nothing where it is so already."""
    layers: list[nn.Module] = []
    if out[0] != channels:
        layers.append(nn.Conv2d(out[0], channels, 1))
    if out[1] != size:
        layers.append(nn.AdaptiveAvgPool2d(size))
    return nn.Sequential(*layers)


def interleave(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle from the tensor's own shape."""
    b, c, h, w = x.shape
    return torch.transpose(x.view(b, groups, c // groups, h, w), 1, 2).reshape(b, c, h, w)
