"""Small nets and steps that the tests of the supernet share."""

from typing import Any

import torch
from torch import Tensor, nn

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 5, 0, 9])
INPUTS = ((X,), {})
"""A batch for ``digits_net``, its labels, and the batch as positional and keyword arguments."""


class Mlp(nn.Module):
    """Two linear layers, so one group: ``first``, 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def evaluated(net: nn.Module, x: Tensor = X) -> Tensor:
    """The output in evaluation mode."""
    with torch.no_grad():
        return net.eval()(x)


def train_step(net: Any, optimizer: torch.optim.Optimizer, x: Tensor = X, y: Tensor = Y) -> float:
    """One step of Network Augmentation; returns the sum of both losses."""
    net.train()
    optimizer.zero_grad()
    target = nn.functional.cross_entropy(net(x), y)
    target.backward()
    with net.augmented():
        augmented = nn.functional.cross_entropy(net(x), y)
        augmented.backward()
    optimizer.step()
    return float(target.detach() + augmented.detach())
