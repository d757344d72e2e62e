"""A net with statistics as of a trained one, its supernet, and a finished training run: made once for all tests."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.models import digits_net
from netaug_fx.training import evolve_run, run
from netaug_fx.training.config import EvolveConfig, TrainConfig, load_config
from netaug_fx.training.data import Task, load_task
from tests.netaug_fx.training_runs import EPOCHS, GENERATION_EPOCHS, GENERATIONS, NET


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


@pytest.fixture(scope="module")
def task(config: TrainConfig) -> Task:
    return load_task(config.data, config.seed)


@pytest.fixture(scope="session")
def evolve_config(config: TrainConfig) -> EvolveConfig:
    """The small net of all training tests, in few and short generations."""
    short = {"model.name": config.model.name, "optim.epochs": GENERATION_EPOCHS, "optim.warmup_epochs": 0.5}
    return load_config(EvolveConfig, None, {**short, "evolve.generations": GENERATIONS, "data.val_fraction": 0.8})


@pytest.fixture(scope="session")
def evolved(evolve_config: EvolveConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evolve_run.start(evolve_config, tmp_path_factory.mktemp("evolve") / "whole")


@pytest.fixture(scope="session")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.start(config, tmp_path_factory.mktemp("runs") / "whole")
