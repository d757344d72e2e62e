"""timm's architectures, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.zoos import Inputs, Net, torchvision_shim

torchvision_shim.install()

import timm  # noqa: E402  (its torchvision needs the shim)
from timm import models as timm_models  # noqa: E402


def names() -> list[str]:
    """Every architecture timm knows, by name."""
    return list(timm.list_models())


def net(name: str) -> Net:
    """One architecture; its family is the file of timm that defines it."""
    module = timm_models.model_entrypoint(name).__module__
    return Net(name, module.rpartition(".")[2], lambda: timm.create_model(name, pretrained=False), _inputs)


def _inputs(model: nn.Module) -> Inputs:
    config: Any = model.pretrained_cfg  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, *config["input_size"], generator=generator),), {}
