"""The nets whose overhead is measured: the zoo's, and a small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netaug_fx.models import create, names


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm, each with a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[n, tokens, width]`` to the same."""
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, 2))
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class SmallViT(nn.Module):
    """A vision transformer of six blocks of 192 channels on patches of 16 pixels (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, side: int = 96, width: int = 192, heads: int = 3, depth: int = 6) -> None:
        super().__init__()
        self.example_input_shape = (3, side, side)
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.places = nn.Parameter(torch.randn(1, (side // 16) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[n, 3, side, side]`` to logits ``[n, 1000]``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]


def net_names() -> tuple[str, ...]:
    return (*names(), "small_vit")


def make_net(name: str, resolution: int | None = None) -> nn.Module:
    """A net by name; images of another side than its own need to be known where places are learnt."""
    return SmallViT(resolution or 96) if name == "small_vit" else create(name)
