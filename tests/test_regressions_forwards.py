"""Forwards that were once handled wrongly, each named after what broke."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import BranchError
from tests import invariants
from tests.holding import augmented, grows


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
    assert not any(0 in t.dims for _, t in invariants.elastic_tensors(supernet) if t.full_name == "2.stem.weight")
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


class ScaledByWidth(nn.Module):
    """The number of channels is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(x * x.shape[1] ** -0.5).mean((2, 3)))


def test_a_width_used_as_a_number_stays_the_targets() -> None:
    inputs = torch.randn(2, 3, 4, 4)
    supernet = augmented(ScaledByWidth(), inputs)
    assert grows(supernet, "stem.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((inputs,), {}))


class SizesAsOneTuple(nn.Module):
    """Puts a shape together from a tuple and a literal, as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.view(-1, x.size(-1)) @ self.weight).view(x.size()[:-1] + (6,))  # noqa: RUF005
        return self.head(hidden)


def test_sizes_put_together_from_tuples_follow_the_widths() -> None:
    x = torch.randn(2, 5, 3)
    supernet = augmented(SizesAsOneTuple(), x)
    assert grows(supernet, "weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))
    with netaug_fx.supernet.Supernet.augmented(supernet):
        assert supernet(torch.randn(3, 4, 3)).shape == (3, 4, 2), "other inputs than the example's"


class GuardsItsWidth(nn.Module):
    """Refuses other widths than it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width = nn.Linear(3, 6), nn.Linear(6, 2), 6

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.a(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} channels")
        return self.b(x if mask is None else x * mask)


def test_a_guard_on_a_width_lets_wider_nets_pass() -> None:
    x = torch.randn(2, 5, 3)
    supernet = augmented(GuardsItsWidth(), x)
    assert grows(supernet, "a.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


def test_an_argument_that_the_example_left_out_is_refused_in_a_wider_net_alone() -> None:
    x, mask = torch.randn(2, 5, 3), torch.ones(2, 5, 1)
    model = GuardsItsWidth()
    supernet = augmented(model, x)
    assert torch.equal(supernet(x, mask), model(x, mask))
    with pytest.raises(BranchError, match="argument 'mask'"), supernet.augmented():
        supernet(x, mask)


class ChoosesItsForward(nn.Module):
    """Chooses one of its methods when it is built, as FasterNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.forward = self.on_a_part

    def on_a_part(self, x: Tensor) -> Tensor:
        first, rest = x.split([4, 8], 1)
        return torch.cat([self.conv(first), rest], 1)


def test_a_forward_chosen_by_the_instance_is_rewritten_and_given_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), ChoosesItsForward(), nn.ReLU(), nn.Conv2d(12, 5, 1))
    inputs = ((torch.randn(2, 3, 6, 6),), {})
    supernet = netaug_fx.augment(model, example_inputs=inputs[0])
    assert grows(supernet, "1.conv.weight")
    for net in (supernet, copy.deepcopy(supernet)):
        invariants.assert_target_is_the_model(net, model, inputs)
        invariants.assert_zeroed_extras_give_the_target(net, inputs)
        invariants.assert_extract_restores(net, model, inputs)
    tiny = netaug_fx.extract(supernet)
    assert tiny[1].forward.__self__ is tiny[1]


class WritesInPlace(nn.Module):
    """Adds and divides in place, next to a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, 2, 3)
        x += 1.0
        x /= 2.0
        x *= 3.0
        x -= 0.5
        return self.b(x.view(-1, 6))


def test_writing_in_place_is_followed() -> None:
    x = torch.randn(4, 3)
    supernet = augmented(WritesInPlace(), x)
    assert grows(supernet, "a.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


class ReturnsADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.a(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)
        return {"logits": self.b(hidden), "more": [x.mean()]}


def test_a_forward_that_returns_a_dict_is_rewritten() -> None:
    x = torch.randn(4, 3)
    supernet = augmented(ReturnsADict(), x)
    assert grows(supernet, "a.weight")
    with supernet.augmented():
        assert type(supernet(x)) is dict


class CutsUnevenly(nn.Module):
    """Eleven channels, joined as 8 and 3, are cut in two by one number, 6 and 5, and the parts change places."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.left, self.right, self.how = nn.Linear(4, 8), nn.Linear(4, 3), how
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        if self.how == "chunk":
            first, second = joined.chunk(2, 1)
        elif self.how == "chunk by keywords":
            first, second = torch.chunk(joined, chunks=2, dim=1)
        elif self.how == "split":
            first, second = joined.split(6, dim=1)
        else:
            first, second = torch.split(joined, 6, 1)
        return self.head(torch.cat([second, first], 1))


@pytest.mark.parametrize("how", ["chunk", "chunk by keywords", "split", "split as a function"])
def test_parts_of_unlike_widths_keep_their_boundary(how: str) -> None:
    """At the widths that ``check`` tried, halves happened to fall on the boundary (random nets 753 and 1822)."""
    x = torch.randn(2, 4)
    supernet = augmented(CutsUnevenly(how), x)
    assert grows(supernet, "left.weight")
    assert grows(supernet, "right.weight")
    names = [group.name for group in supernet.groups]
    for widths in itertools.product(*(group.choices for group in supernet.groups)):
        with supernet.augmented(dict(zip(names, widths, strict=True))):
            assert supernet(x).shape == (2, 2)


class StandardisesItsFilters(nn.Conv2d):
    """As timm's: filters standardised by a batch norm over a view that holds ``out_channels``."""

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(filters, None, None, training=True, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_grouped_convolution_with_a_rewritten_forward_keeps_its_groups_in_step() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        StandardisesItsFilters(8, 8, 3, padding=1, groups=4),
        StandardisesItsFilters(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 25, 3),
    )
    supernet = augmented(model, torch.randn(2, 3, 5, 5))
    assert all(grows(supernet, f"{layer}.weight") for layer in (0, 1, 2, 5))
