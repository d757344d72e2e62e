"""What a rewritten forward must not get wrong: each net here is right at the original's widths, refuses, or is pinned.

A graph holds one way through a forward. Whatever could make another call of the same forward go another way, or do
something that the graph does not show, is tried here: at the original's widths an augmented pass must give the target's
outputs, or say why it cannot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import netaug_fx
from netaug_fx.errors import BranchError, InputError
from netaug_fx.models import digits_net
from netaug_fx.supernet import Supernet, control
from tests import invariants


class Base(nn.Module):
    """A stem, something in between that reshapes by a literal (so that it must be rewritten to grow), a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Sequential(nn.Conv2d(16, 4, 1), nn.Conv2d(4, 3, 1))

    def reshaped(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class Scales(Base):
    def forward(self, x: Tensor, scale: float = 1.0, shift: int = 1, sizes: tuple[int, int] = (2, 3)) -> Tensor:
        return self.head(self.reshaped(self.stem(x)).roll(shift, 3) * scale + sizes[1])  # type: ignore[no-any-return]


class ComparesWidthWithInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[2]
        x = self.reshaped(self.stem(x))
        if x.shape[1] < rows:
            x = x * 2
        return self.head(x / (x.shape[1] + rows // 64))  # type: ignore[no-any-return]


class AsksTheClass(Base):
    def forward(self, x: Tensor, eps: float = 1e-5) -> Tensor:
        return self.head(F.group_norm(self.reshaped(self.stem(x)), 1, eps=eps if isinstance(eps, float) else 10.0))  # type: ignore[no-any-return]


class Optional(Base):
    def forward(self, x: Tensor, options: Mapping[str, Any]) -> Tensor:
        mask = options.get("mask")
        x = self.reshaped(self.stem(x))
        return self.head(x if mask is None else x * mask)  # type: ignore[no-any-return]


class FrozenTeacher(Base):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reshaped(self.stem(x))
        with torch.no_grad():
            taught = self.teacher(x)
        return self.head(x + taught)  # type: ignore[no-any-return]


class AsksForGradients(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.reshaped(self.stem(x))
        return self.head(x * 2 if torch.is_grad_enabled() else x)  # type: ignore[no-any-return]


class FullPrecision(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.reshaped(self.stem(x))
        with torch.autocast("cpu", enabled=False):
            return self.head(x.float())  # type: ignore[no-any-return]


class Checkpoints(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.reshaped(self.stem(x))
        if self.training and x.requires_grad:
            return checkpoint(self.head, x, use_reentrant=False)  # type: ignore[no-any-return]
        return self.head(x)  # type: ignore[no-any-return]


class KeepsLosses(Base):
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.reshaped(self.stem(x))
        self.losses.append(1.0)
        return self.head(x)  # type: ignore[no-any-return]


class Tempered(Base):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reshaped(self.stem(x)) / self.temperature)  # type: ignore[no-any-return]


class LongForward(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(600):
            x = x + 0.001
        return self.head(self.reshaped(x) if x.shape[0] > 0 else x)  # type: ignore[no-any-return]


class DoublesItsNumbers(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        number = x.shape[1]
        for _ in range(24):
            number = (number + number) // 2
        return self.head(self.reshaped(x) / number)  # type: ignore[no-any-return]


class FillsWithNan(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.reshaped(self.stem(x))
        return self.head(torch.nan_to_num(x.masked_fill(x < 0, float("nan"))))  # type: ignore[no-any-return]


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
X = torch.randn(2, 3, 8, 8)


def augmented(model: nn.Module, *inputs: Any) -> Supernet:
    return netaug_fx.augment(model.train(), 2, example_inputs=inputs or (X,))


@contextlib.contextmanager
def at_home(supernet: Supernet) -> Any:
    """An augmented pass at the original's widths."""
    with Supernet.augmented(supernet, {}):
        yield


def assert_gives_the_target(supernet: Supernet, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        expected = supernet(*args, **kwargs)
        with at_home(supernet):
            torch.testing.assert_close(supernet(*args, **kwargs), expected)


def grows(supernet: Supernet) -> bool:
    return any("stem" in group.layers for group in control(supernet).groups)


def test_an_argument_that_was_left_out_keeps_its_default_or_is_refused() -> None:
    supernet = augmented(Scales())
    assert grows(supernet)
    assert_gives_the_target(supernet, X)
    for other in ({"scale": 3.0}, {"shift": 2}, {"sizes": (1, 1)}):
        supernet(X, **other)
        with pytest.raises(BranchError, match=f"argument '{next(iter(other))}'"), at_home(supernet):
            supernet(X, **other)


def test_a_number_that_was_given_may_be_another() -> None:
    supernet = augmented(Scales(), X, 2.0, 1)
    assert grows(supernet)
    for scale, shift in ((2.0, 1), (3.0, 2)):
        assert_gives_the_target(supernet, X, scale, shift)


def test_a_width_compared_with_the_input_is_no_condition_on_widths() -> None:
    supernet = augmented(ComparesWidthWithInput(), torch.randn(1, 3, 32, 32))
    assert_gives_the_target(supernet, torch.randn(1, 3, 32, 32))
    for size in (8, 256):
        with contextlib.suppress(BranchError):
            assert_gives_the_target(supernet, torch.randn(1, 3, size, size))


def test_a_class_that_is_asked_for_is_the_values_own() -> None:
    supernet = augmented(AsksTheClass(), X, 1e-3)
    assert_gives_the_target(supernet, X, 1e-3)


def test_what_a_mapping_holds_is_guarded() -> None:
    supernet = augmented(Optional(), X, {"mask": torch.ones(1, 1, 8, 8)})
    assert_gives_the_target(supernet, X, {"mask": torch.zeros(1, 1, 8, 8)})
    supernet(X, {})
    with contextlib.suppress(BranchError):
        assert_gives_the_target(supernet, X, {})


def test_parts_without_gradients_have_none_in_wider_nets() -> None:
    supernet = augmented(FrozenTeacher())
    with at_home(supernet):
        supernet(X).sum().backward()
    assert supernet.teacher.weight.grad is None  # type: ignore[union-attr]


def test_a_forward_that_asks_for_the_mode_of_gradients_gets_the_true_one() -> None:
    supernet = augmented(AsksForGradients())
    with at_home(supernet):
        torch.testing.assert_close(supernet(X), supernet.head(supernet.reshaped(supernet.stem(X)) * 2))  # type: ignore[operator]


def test_parts_in_full_precision_stay_so_under_autocast() -> None:
    supernet = augmented(FullPrecision())
    with torch.autocast("cpu", dtype=torch.bfloat16), at_home(supernet):
        assert supernet(X).dtype == torch.float32


def test_the_callers_autocast_is_left_for_as_long_as_a_model_is_looked_at() -> None:
    model = digits_net()
    expected = netaug_fx.augment(model, example_inputs=IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = netaug_fx.augment(model, example_inputs=IMAGES)
        report = netaug_fx.verify(netaug_fx.extract(found), model, IMAGES)
    assert found.groups == expected.groups
    assert report.passed, report
    assert report.macs == netaug_fx.verify(model, model, IMAGES, onnx=False).macs


def test_checkpoints_that_ask_for_gradients_work_or_are_refused_at_once() -> None:
    supernet = augmented(Checkpoints())
    with Supernet.augmented(supernet):
        supernet(X).sum().backward()
    assert supernet.stem.weight.grad is not None  # type: ignore[union-attr]


def test_what_a_forward_adds_to_a_list_is_added_by_wider_nets_too() -> None:
    supernet = augmented(KeepsLosses())
    before = len(supernet.losses)  # type: ignore[arg-type]
    with at_home(supernet):
        supernet(X)
    assert len(supernet.losses) == before + 1  # type: ignore[arg-type]


def test_an_attribute_that_changes_is_noticed() -> None:
    supernet = augmented(Tempered())
    assert grows(supernet)
    assert_gives_the_target(supernet, X)
    supernet.temperature = 0.5  # type: ignore[assignment]
    with (
        pytest.raises(BranchError, match=r"the model \(Tempered\): attribute 'temperature' is 0\.5, but was"),
        at_home(supernet),
    ):
        supernet(X)


@pytest.mark.parametrize("model", [LongForward(), DoublesItsNumbers(), FillsWithNan()], ids=lambda m: type(m).__name__)
def test_long_and_odd_forwards_grow(model: nn.Module) -> None:
    supernet = augmented(model)
    assert grows(supernet)
    assert_gives_the_target(supernet, X)
    assert_gives_the_target(supernet, torch.randn(1, 3, 10, 6))


class Rolls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(3, 1)


class RollsOpaquely(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert int(x.shape[0]) > 0  # int() wants a number, which a trace does not have
        return x.roll(3, 1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("first", [Rolls(), nn.Identity()], ids=["beside a rewritten one", "alone"])
def test_a_literal_roll_in_an_opaque_forward_pins_at_every_seed(first: nn.Module, seed: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.opaque = nn.Conv2d(3, 8, 1), first, RollsOpaquely()
            self.left, self.right, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.last(self.left(self.first(x)) + self.right(self.opaque(x)))  # type: ignore[no-any-return]

    supernet = netaug_fx.augment(Net(), 2, example_inputs=X, seed=seed)
    rolled = [group for group in supernet.groups if "opaque" in group.layers or "right" in group.readers]
    assert rolled == []


# -- nets of a new user's own ------------------------------------------------------------------------------------------


def quarters(x: Tensor) -> Tensor:
    first = x.shape[1] // 4
    return torch.cat([x[:, :first] * 2, x[:, first:]], 1)


class CallsAnAttribute(nn.Module):
    """Its sizes are computed in a function that only an attribute of the instance leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.function, self.stem, self.head = quarters, nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.stem(x)))  # type: ignore[no-any-return]


class QuartersOpaquely(CallsAnAttribute):
    def forward(self, x: Tensor) -> Tensor:
        assert int(x.shape[0]) > 0  # int() wants a number, which a trace does not have
        return super().forward(x)


class FifthsOpaquely(nn.Module):
    """Five parts, each cut at a multiple of a fifth, as ShiftViT does: right wherever all parts grow alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.last = nn.Conv2d(3, 10, 1), nn.Conv2d(10, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out, fifth = torch.zeros_like(x), int(x.shape[1]) // 5
        for part in range(5):
            rows = slice(part * fifth, (part + 1) * fifth if part < 4 else None)
            out[:, rows] = x[:, rows] * (part + 1)
        return self.last(self.mix(out))  # type: ignore[no-any-return]


def test_parts_that_can_grow_by_one_only_are_not_taken_for_alike() -> None:
    for seed in range(6):
        supernet = netaug_fx.augment(FifthsOpaquely(), 1.5, example_inputs=X, seed=seed)
        invariants.assert_zeroed_extras_give_the_target(supernet, ((X,), {}))
        assert not grows(supernet)


class JoinsHalves(CallsAnAttribute):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        return self.head(torch.cat([x[:, :half] * 2, x[:, half:]], 1))  # type: ignore[no-any-return]


class Unpacks(nn.Module):
    """Attention as it is often written: one tensor taken apart into three names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.mix, self.last = (nn.Linear(*s) for s in ((3, 12), (12, 36), (12, 12), (12, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.last(self.mix(x).mean(1))  # type: ignore[no-any-return]


class Spectral(nn.Module):
    """A weight divided by its norm, which torch writes into a tensor that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
        self.c = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))  # type: ignore[no-any-return]


class Fourier(Base):
    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft2(self.stem(x))
        return self.head(torch.fft.irfft2(found * 0.5, s=x.shape[-2:]))  # type: ignore[no-any-return]


class SetsByMask(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[x < 0] = 0.0
        return self.head(x)  # type: ignore[no-any-return]


TOKENS = torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    ("model", "x", "share"),
    [
        (CallsAnAttribute(), X, 1.0),
        (QuartersOpaquely(), X, 0.0),
        (JoinsHalves(), X, 1.0),
        (Unpacks(), TOKENS, 1.0),
        (Spectral(), TOKENS, 0.3),
        (Fourier(), X, 1.0),
        (SetsByMask(), X, 1.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_nets_of_a_new_users_own_grow_and_stay_exact(model: nn.Module, x: Tensor, share: float) -> None:
    found = netaug_fx.inspect(model, 2, example_inputs=x)
    assert found.growing_share >= share, str(found)
    for seed in range(6 if found.groups else 0):
        supernet = netaug_fx.augment(model, 2, example_inputs=x, seed=seed)
        invariants.assert_target_is_the_model(supernet, model, ((x,), {}))
        if not found.mixing:
            invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


def test_a_forward_replaced_by_a_closure_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    own = model[1].forward
    model[1].forward = lambda x: own(x).tanh()
    with pytest.raises(InputError, match=r"module '1' \(Linear\): its forward was replaced by a function that holds"):
        netaug_fx.augment(model, example_inputs=torch.randn(2, 3))


def test_a_forward_that_cannot_be_traced_is_named_where_it_pins() -> None:
    shown = str(netaug_fx.inspect(QuartersOpaquely(), 2, example_inputs=X))
    assert "forwards that cannot be traced, so that numbers in them cannot follow a width:" in shown
    assert "(model) (QuartersOpaquely): torch.fx cannot follow it: TypeError" in shown


def test_a_refused_branch_names_its_module() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.b(step.view(-1, 6)) for step in self.a(x).unbind(1)])

    supernet = netaug_fx.augment(nn.Sequential(Steps()), 2, example_inputs=TOKENS)
    supernet(torch.randn(2, 7, 3))
    with (
        pytest.raises(BranchError, match=r"module '0' \(Steps\): the number of items in .*unbind"),
        at_home(supernet),
    ):
        supernet(torch.randn(2, 7, 3))
