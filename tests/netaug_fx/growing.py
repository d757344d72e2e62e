"""What the tests of enlarging share: a small net, a taste, and a search that takes a second or two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from netaug_fx.enlargement import Enlarged, enlarge
from netaug_fx.passes.fake_macs import fake_macs

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Residual, or not."""

    def __init__(self, width: int, shortcut: bool = True) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.shortcut = nn.Conv2d(width, width, 1), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.norm(self.one(x)).relu())
        return x + y if self.shortcut else y


def small(width: int = 16, shortcut: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two blocks at one size, and a narrower layer behind them."""
    with fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        blocks = (Block(width, shortcut), Block(width, shortcut))
        head = (nn.Conv2d(width, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        return nn.Sequential(stem, activation(), *blocks, *head).eval()


def macs_of(model: nn.Module, side: int = 8) -> int:
    return fake_macs(model, ((X,), {}), side) // len(X)


def like_depth(model: nn.Module, resolution: int) -> float:
    """A taste for layers, and a slight one for small images."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) - resolution / 1000


def search(evaluate: Any = like_depth, times: float = 1.6, model: nn.Module | None = None, **options: Any) -> Enlarged:
    net = small() if model is None else model
    settings = {"step": 0.6, "pixels": 1, "example_inputs": X} | options
    return enlarge(net, macs=int(times * macs_of(net)), evaluate=evaluate, **settings)
