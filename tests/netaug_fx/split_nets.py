"""A small net that can be split, trained and compared, for the tests of generations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.supernet import Supernet
from tests.invariants import loss


def tensors(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if isinstance(value, Tensor)}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {
        key for key, value in before.items() if not torch.equal(torch.nan_to_num(value), torch.nan_to_num(after[key]))
    }


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip


def split_net(keep: float = 0.5, method: str = "kels", **options: Any) -> Supernet:
    return netaug_fx.evolve(net(), keep, method, example_inputs=torch.zeros(2, 3, 8, 8), **options)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        if isinstance(model, Supernet):
            with model.dense():
                loss([model(x)]).backward()
        else:
            loss([model(x)]).backward()
        optimizer.step()
