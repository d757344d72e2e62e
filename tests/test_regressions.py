"""Nets that were once handled wrongly, each named after what broke."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaug_fx
from netaug_fx.passes.infer import infer
from netaug_fx.supernet import control
from tests import invariants


def augmented(model: nn.Module, *inputs: Tensor) -> netaug_fx.Supernet:
    """The supernet of a net with random statistics, held against all invariants."""
    given: Any = (inputs, {})
    supernet = netaug_fx.augment(model, 3, example_inputs=inputs)
    invariants.assert_target_is_the_model(supernet, model, given)
    invariants.assert_extract_restores(supernet, model, given)
    invariants.assert_augmented_step_reaches_everything(supernet, given)
    invariants.assert_zeroed_extras_give_the_target(supernet, given)
    return supernet


def grows(supernet: nn.Module, name: str) -> bool:
    return any(tensor.full_name == name and tensor.dims for _, tensor in invariants.elastic_tensors(supernet))


def reasons(supernet: nn.Module, name: str) -> str:
    return " ".join(f"{pin.reason} {pin.op}" for pin in control(supernet).pins if pin.tensor == name)


class SizesAsArguments(nn.Module):
    """Height and width are handed to a block as integers, as pyramid vision transformers do."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.depthwise, self.fc2 = (
                nn.Linear(6, 10),
                nn.Conv2d(10, 10, 3, 1, 1, groups=10),
                nn.Linear(10, 6),
            )

        def forward(self, x: Tensor, h: int, w: int) -> Tensor:
            x = self.fc1(x)
            b, _, c = x.shape
            x = self.depthwise(x.transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2)
            return self.fc2(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 2, 2), self.Block(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h, w = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        return self.head((x + self.block(x, h, w)).mean(1))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 3, 4, 16), (1, 3, 4, 4)])
def test_sizes_handed_on_as_arguments_follow_the_input(shape: tuple[int, ...]) -> None:
    model = SizesAsArguments()
    supernet = augmented(model, torch.randn(2, 3, 8, 8))
    assert grows(supernet, "block.fc1.weight")
    other = torch.randn(*shape)
    invariants.assert_target_is_the_model(supernet, model, ((other,), {}))
    invariants.assert_zeroed_extras_give_the_target(supernet, ((other,), {}))


class RandomBranch(nn.Module):
    """Python's own random numbers decide, beside a literal width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3)).view(-1, 6)
        if random.random() < 0.5:
            x = x * 2.0
        return self.head(x)


def test_python_randomness_stays_in_the_target() -> None:
    model = RandomBranch()
    x = torch.randn(2, 3, 4, 4)
    supernet = netaug_fx.augment(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), model), example_inputs=x)
    assert not grows(supernet, "2.stem.weight")
    plain = netaug_fx.extract(supernet)
    for seed in range(10):
        random.seed(seed)
        ours = supernet(x)
        random.seed(seed)
        assert torch.equal(ours, plain(x))


class KeepsFeatures(nn.Module):
    """A helper method assigns an attribute, beside a literal width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 6, 1))
        self.head, self.gain = nn.Linear(6, 5), 1.0

    def keep(self, x: Tensor) -> None:
        self.last = x.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).mean((2, 3)).view(-1, 6) * self.gain
        self.keep(x)
        return self.head(x)


def test_target_runs_the_users_own_forward() -> None:
    supernet = netaug_fx.augment(KeepsFeatures(), example_inputs=torch.randn(2, 3, 4, 4))
    assert grows(supernet, "inner.0.weight")
    x = torch.randn(2, 3, 4, 4)
    before = supernet(x)
    assert torch.equal(supernet.last, supernet.inner(x).mean((2, 3)))
    supernet.gain = 3.0
    assert not torch.allclose(supernet(x), before)


class CropAndSlice(nn.Module):
    """Rows are cropped to as many as channels are sliced: equal numbers, unrelated sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.left, self.right = nn.Conv2d(8, 7, 1), nn.Conv2d(4, 7, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x[:, :, :8])
        x = self.left(x[:, :8]) + self.right(x[:, 8:])
        return self.head(x.mean((2, 3)))


def test_equal_numbers_tie_nothing() -> None:
    supernet = augmented(CropAndSlice(), torch.randn(2, 3, 10, 6))
    assert {group.width for group in supernet.groups} == {8, 4, 7}


class KeyValueCache(nn.Module):
    """Keys and values are written into buffers, and read back from there."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 5)
        self.register_buffer("keys", torch.zeros(4, 8, 6), persistent=False)
        self.register_buffer("values", torch.zeros(4, 8, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        self.keys[:b, :n] = self.k(x)
        self.values[:b, :n] = self.v(x)
        weights = (self.q(x) @ self.keys[:b, :n].transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.values[:b, :n]).mean(1))


def test_a_cache_is_an_activation() -> None:
    model = KeyValueCache()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        supernet = netaug_fx.augment(model, example_inputs=x)
    assert not any(
        0 in tensor.dims for _, tensor in invariants.elastic_tensors(supernet) if tensor.full_name == "q.weight"
    )
    assert "two activations" in reasons(supernet, "q.weight")
    with torch.no_grad():
        invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


class Preallocated(nn.Module):
    """An activation is written into zeros made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(self.a(x))
        h[:, 1:] = self.a(x)[:, :-1]
        return self.d(self.c(h).relu()).mean(1)


def test_zeros_written_into_are_an_activation() -> None:
    supernet = augmented(Preallocated(), torch.randn(2, 3, 4))
    contracted = {
        tensor.full_name: tensor.contracted for _, tensor in invariants.elastic_tensors(supernet) if tensor.dims
    }
    assert contracted["c.weight"] == (1,)
    assert contracted["d.weight"] == (1,)


class PermutedByBuffer(nn.Module):
    """A buffer numbers the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1), nn.Linear(7, 5)
        self.register_buffer("order", torch.tensor([5, 2, 1, 3, 0, 6, 7, 4]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x)[:, self.order]).mean((2, 3)))


def test_numbers_in_buffers_are_never_widened_nor_sorted() -> None:
    model = PermutedByBuffer()
    supernet = augmented(model, torch.randn(2, 3, 4, 4))
    netaug_fx.sort_channels_(supernet, kinds=("stream", "inner"))
    tiny = netaug_fx.extract(supernet)
    assert torch.equal(tiny.order, model.order)
    model.load_state_dict(tiny.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), tiny(x))


class ScaledByWidth(nn.Module):
    """The number of channels is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(x * x.shape[1] ** -0.5).mean((2, 3)))


def test_a_width_used_as_a_number_pins() -> None:
    supernet = augmented(ScaledByWidth(), torch.randn(2, 3, 4, 4))
    assert not grows(supernet, "stem.weight")
    assert "when channels are added" in reasons(supernet, "stem.weight")
    assert grows(supernet, "mix.weight")


class OwnNorm(nn.Module):
    """A norm of the user's own, with running statistics and a momentum that must be a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=self.momentum)


def test_a_norm_of_the_users_own_is_calibrated() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), OwnNorm(6), nn.Conv2d(6, 5, 1))
    batches = [torch.randn(8, 3, 4, 4) for _ in range(3)]
    supernet = netaug_fx.augment(model, example_inputs=batches[0])
    netaug_fx.calibrate_(supernet, batches)
    expected = torch.stack([model[0](x).mean((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(supernet[1].running_mean, expected, rtol=1e-4, atol=1e-5)
    assert supernet[1].momentum == 0.1
    netaug_fx.calibrate_(supernet, batches, supernet.widest)
    supernet.double().eval()
    with supernet.augmented(supernet.widest):
        assert supernet(batches[0].double()).dtype == torch.double


def test_calibrated_statistics_end_with_the_weights_they_belong_to() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1))
    x = torch.randn(4, 3, 4, 4)
    supernet = netaug_fx.augment(model, example_inputs=x)
    netaug_fx.calibrate_(supernet, [x], supernet.widest)
    assert len(control(supernet).calibrated) == 1
    supernet.load_state_dict(supernet.state_dict())
    assert len(control(supernet).calibrated) == 0
    netaug_fx.calibrate_(supernet, [x], supernet.widest)
    with supernet.train().augmented():
        supernet(x)
    assert len(control(supernet).calibrated) == 0


def test_two_slices_of_one_module_need_not_agree() -> None:
    class TwoSlices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 7, 1), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(self.stem(x))
            return self.head(y.mean((2, 3))) + x[:, :2].mean() + y[:, 2:4].mean()

    model = TwoSlices()
    analysis = infer(model, ((torch.randn(2, 3, 9, 9),), {}))
    assert set(analysis.tensors) == {name for name, _ in model.named_parameters()}
    netaug_fx.augment(model, example_inputs=torch.randn(2, 3, 9, 9))
