"""Stages of known nets, and multiply-adds at other resolutions than the example's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from netaug_fx import models
from netaug_fx.api import compile_model
from netaug_fx.errors import TraceError
from netaug_fx.passes.fake_macs import fake_macs
from netaug_fx.passes.macs import count
from netaug_fx.passes.stages import Stage, find_stages


def stages_of(model: nn.Module, x: torch.Tensor) -> tuple[Stage, ...]:
    found = compile_model(model, 1.5, example_inputs=x)
    return find_stages(model, found.analysis, found.inputs)


def test_a_residual_net_has_a_stage_for_each_size() -> None:
    found = stages_of(models.resnet20(), torch.zeros(2, 3, 32, 32))
    assert [(stage.name, stage.positions, stage.blocks) for stage in found] == [
        ("conv1", 32 * 32, ("layer1.0", "layer1.1", "layer1.2")),
        ("layer2.0.conv2", 16 * 16, ("layer2.1", "layer2.2")),
        ("layer3.0.conv2", 8 * 8, ("layer3.1", "layer3.2")),
    ]
    assert found[0].inner == ("layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1")


def test_two_residual_groups_of_one_size_are_two_stages() -> None:
    found = stages_of(models.mobilenet_v2_tiny(), torch.zeros(2, 3, 64, 64))
    sizes = [stage.positions for stage in found]
    assert sizes == [1024, 256, 64, 16, 16, 4, 4]
    assert found[3].blocks == ("blocks.7", "blocks.8", "blocks.9")
    assert found[4].blocks == ("blocks.11", "blocks.12")
    assert found[0].streams == ("stem.conv", "blocks.0.body.project.conv"), "each is written once"
    everything = [name for stage in found for name in (*stage.streams, *stage.inner)]
    assert len(everything) == len(set(everything))


def test_gates_and_halves_of_a_block_are_no_blocks_of_a_stage() -> None:
    ghost = stages_of(models.ghostnet(num_classes=4), torch.zeros(2, 3, 32, 32))
    assert [stage.blocks for stage in ghost[:3]] == [("blocks.0",), ("blocks.2",), ("blocks.4",)]
    efficient = stages_of(models.efficientnet_b0(num_classes=4), torch.zeros(2, 3, 32, 32))
    assert [len(stage.blocks) for stage in efficient] == [0, 0, 1, 1, 2, 2, 3, 0]
    assert [stage.positions for stage in efficient] == [256, 256, 64, 16, 4, 4, 1, 1]


def test_layers_of_a_plain_net_between_two_poolings_are_one_stage() -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    found = stages_of(nn.Sequential(*layers, nn.Linear(6, 2)), torch.zeros(2, 3, 8, 8))
    assert [(stage.positions, stage.streams, stage.blocks) for stage in found] == [
        (64, ("0", "2"), ()),
        (16, ("5",), ()),
    ]


@pytest.mark.parametrize("resolution", [32, 40, 64])
def test_multiply_adds_at_a_resolution_are_those_of_a_real_run(resolution: int) -> None:
    model = models.mobilenet_v2_tiny()
    image: Any = torch.zeros(1, 3, resolution, resolution)
    assert fake_macs(model, ((torch.zeros(1, 3, 32, 32),), {}), resolution) == count(model, image).torch_macs
    assert fake_macs(model, ((image,), {})) == count(model, image).torch_macs


def test_a_resolution_that_a_net_cannot_take_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    with pytest.raises(TraceError, match="Sequential does not run at 10 pixels"):
        fake_macs(net, ((torch.zeros(1, 3, 8, 8),), {}), 10)
