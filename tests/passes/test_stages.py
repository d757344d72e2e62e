"""Stages of known nets, and multiply-adds at other resolutions than the example's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netaug_fx import models
from netaug_fx.api import compile_model
from netaug_fx.errors import InputError, TraceError
from netaug_fx.passes.fake_macs import at_resolution, fake_macs
from netaug_fx.passes.macs import count
from netaug_fx.passes.stages import Stage, find_stages, macs_by_positions


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


class Asking(nn.Module):
    """What runs depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x)
        return self.two(y) if bool(y.mean() > -1e9) else y


def test_where_values_decide_what_runs_it_runs_for_real() -> None:
    net = Asking()
    expected = count(net, torch.zeros(1, 3, 10, 10)).torch_macs
    assert fake_macs(net, ((torch.zeros(1, 3, 8, 8),), {}), 10) == expected == 8 * 8 * 4 * 27 + 6 * 6 * 5 * 36


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.memory(x)[0][:, -1])
        return y


def test_recurrent_layers_are_counted() -> None:
    """oneDNN's operator for them was not: 128 multiply-adds were left, those of the last layer."""
    x = torch.zeros(2, 7, 8)
    expected = count(Recurrent(), x)
    assert fake_macs(Recurrent(), ((x,), {})) == expected.torch_macs == expected.macs > 20_000


def test_images_of_another_side_leave_masks_and_other_pictures_as_they_are() -> None:
    image, mask, small = torch.ones(2, 3, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool), torch.ones(2, 1, 4, 4)
    (image, mask, small), _ = at_resolution(((image, mask, small), {}), 24)
    assert [tuple(t.shape) for t in (image, mask, small)] == [(2, 3, 24, 24), (2, 1, 16, 16), (2, 1, 4, 4)]
    with pytest.raises(InputError, match="images of 8 x 12 are not square"):
        at_resolution(((torch.zeros(2, 3, 8, 12),), {}), 24)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 2)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        y: torch.Tensor = self.head(tokens.mean(1))
        return y


def test_heads_are_no_positions_of_a_feature_map() -> None:
    """Attention's products were counted at heads times tokens."""
    x = torch.zeros(2, 3, 12, 12)
    found = compile_model(Attending().eval(), 1.5, example_inputs=x, allow_nothing=True)
    by_size = macs_by_positions(found.analysis, 2)
    assert by_size.keys() == {9, 1}
    assert by_size[1] == 16 * 2
    assert sum(by_size.values()) == count(Attending(), x).macs // 2
