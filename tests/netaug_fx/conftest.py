"""A net with statistics as of a trained one, its supernet, and a finished training run: made once for all tests."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.models import digits_net
from netaug_fx.training import run
from netaug_fx.training.config import TrainConfig, load_config
from tests.netaug_fx.training_runs import EPOCHS, NET


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


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    net = tmp_path_factory.mktemp("net") / "net.py"
    net.write_text(NET)
    return load_config(
        TrainConfig,
        None,
        {
            "model.name": f"{net}:make",
            "data.batch_size": 128,
            "optim.epochs": EPOCHS,
            "optim.warmup_epochs": 0.5,
            "netaug.ratio": 2.0,
        },
    )


@pytest.fixture(scope="session")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.start(config, tmp_path_factory.mktemp("runs") / "whole")
