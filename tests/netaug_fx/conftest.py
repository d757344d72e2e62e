"""A net with statistics as of a trained one, and its supernet, made once and copied for each test."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.models import digits_net


@pytest.fixture(scope="session")
def made() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = digits_net(dropout=0.1)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model, netaug_fx.augment(model, ratio=3, seed=7)


@pytest.fixture
def model(made: tuple[nn.Module, Any]) -> nn.Module:
    return copy.deepcopy(made[0])


@pytest.fixture
def supernet(made: tuple[nn.Module, Any]) -> Any:
    return copy.deepcopy(made[1])
