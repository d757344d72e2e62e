"""State that forwards keep outside of buffers, and models of unusual classes: what an augmented pass once broke."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import netaug_fx
from netaug_fx.errors import CheckError, InputError, PlanError
from tests.holding import augmented, grows


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)).relu())  # type: ignore[no-any-return]


class WarmsUp(Base):
    step = 0

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.step += 1
        return x * 2 if self.step >= 3 else x


class RemembersItsOutput(Base):
    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) + self.memory
        self.memory = 0.5 * self.memory + 0.5 * y.detach()[:1]
        return y


class CachesAScale(Base):
    scale: Any = None

    def between(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.tensor(x.shape[1] ** -0.5)
        return x * self.scale


class SetsAChildsAttribute(Base):
    def between(self, x: Tensor) -> Tensor:
        setattr(self.b, "seen", getattr(self.b, "seen", 0) + 1)  # noqa: B010
        return x


@pytest.mark.parametrize("cls", [WarmsUp, RemembersItsOutput, CachesAScale])
def test_what_an_augmented_pass_assigns_is_taken_back(cls: type[Base]) -> None:
    torch.manual_seed(0)
    model, x = cls(), torch.randn(5, 3)
    supernet = netaug_fx.augment(model, 3, example_inputs=x)
    original = copy.deepcopy(model)
    for _ in range(4):
        with supernet.augmented(supernet.widest):
            supernet(x)
        assert torch.equal(supernet(x), original(x))
    assert torch.equal(netaug_fx.extract(supernet).eval()(x), copy.deepcopy(original).eval()(x))


def test_what_a_forward_assigns_to_another_module_is_taken_back_too() -> None:
    supernet: Any = netaug_fx.augment(SetsAChildsAttribute(), 3, example_inputs=torch.randn(2, 3))
    assert not hasattr(supernet.b, "seen")
    for _ in range(4):
        with supernet.augmented():
            supernet(torch.randn(2, 3))
        supernet(torch.randn(2, 3))
    assert supernet.b.seen == 4


def test_what_is_assigned_can_be_read_within_the_pass() -> None:
    supernet, x = netaug_fx.augment(RemembersItsOutput(), 3, example_inputs=torch.randn(2, 3)), torch.randn(2, 3)
    before: Any = supernet.memory
    with supernet.augmented(supernet.widest):
        supernet(x)
        assert supernet.memory is not before
        supernet.eval()
    assert supernet.memory is before
    assert not supernet.training, "the mode is whatever the user made it"


def test_writing_into_a_tensor_that_is_no_buffer_is_refused() -> None:
    class WritesIntoAnAlias(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1, 4))
            self.statistics = {"mean": self.mean}

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            if self.training:
                self.statistics["mean"].mul_(0.9).add_(y.detach()[:1])
            return y + self.mean

    with pytest.raises(CheckError, match=r"writes into the tensor 'statistics' .* Register it as a buffer"):
        netaug_fx.augment(WritesIntoAnAlias(), 3, example_inputs=torch.randn(5, 3))


class MakesATensor(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(3, 8), nn.Linear(8, 4), how

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.how(self.a(x)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x / torch.sqrt(torch.tensor(float(x.shape[1]))),
        lambda x: x / x.new_tensor(x.shape[1]),
        lambda x: x / torch.as_tensor(x.size(1)),
        lambda x: x / torch.tensor(x.shape)[1],
        lambda x: x / torch.full((1,), x.shape[1]).sqrt(),
        lambda x: x * torch.linspace(0, x.shape[1], 8).mean(),
        lambda x: x * torch.var(torch.arange(5.0), correction=x.shape[1] // 8),
    ],
    ids=["tensor", "new_tensor", "as_tensor", "shape", "full", "linspace", "correction"],
)
def test_a_width_that_becomes_a_tensor_stays(how: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(PlanError, match=r"when channels are added, where it"):
        netaug_fx.augment(MakesATensor(how), 3, example_inputs=torch.randn(2, 3))


def test_a_constant_that_is_no_number_is_the_same_at_every_width() -> None:
    model = MakesATensor(lambda x: torch.where(x > 1e9, torch.tensor(float("nan")), x))
    assert grows(augmented(model, torch.randn(2, 3)), "a.weight")


def test_an_attribute_that_was_none_and_is_deleted_comes_back() -> None:
    class Forgets(Base):
        note: Any

        def __init__(self) -> None:
            super().__init__()
            self.note = None

        def between(self, x: Tensor) -> Tensor:
            if hasattr(self, "note"):
                del self.note
            return x

    supernet: Any = netaug_fx.augment(Forgets(), 3, example_inputs=torch.randn(2, 3))
    with supernet.augmented():
        supernet(torch.randn(2, 3))
        assert "note" not in vars(supernet)
    assert vars(supernet)["note"] is None


# -- unusual classes -------------------------------------------------------------------------------


class HoldsAWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 1), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).view(x.shape[0], 128))  # type: ignore[no-any-return]


def test_a_graph_module_grows_as_a_root_and_as_a_child() -> None:
    x = torch.randn(2, 3, 4, 4)
    traced = fx.symbolic_trace(HoldsAWidth())
    supernet = augmented(traced, x)
    assert grows(supernet, "a.weight")
    assert netaug_fx.verify(netaug_fx.extract(supernet), traced, x).passed
    with pytest.raises(pickle.PicklingError, match="keep the state_dict"):
        pickle.dumps(supernet)
    assert grows(augmented(nn.Sequential(traced, nn.Linear(4, 2)), x), "0.a.weight")


def test_an_exported_program_is_no_traceback() -> None:
    x = torch.randn(2, 3, 4, 4)
    exported = torch.export.export(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), (x,))
    found = netaug_fx.inspect(nn.Sequential(nn.Conv2d(3, 3, 1), exported.module()), example_inputs=x)
    assert "0" in str(found)


def test_what_cannot_be_copied_or_subclassed_is_named() -> None:
    class Locked(Base):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    class Plugin(Base):
        def __init_subclass__(cls, *, name: str) -> None:
            cls.registered = name  # type: ignore[attr-defined]

    class Registered(Plugin, name="one"):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.zeros(8))

        def between(self, x: Tensor) -> Tensor:
            return x + self.own

    with pytest.raises(InputError, match=r"attribute 'lock' of the model \(Locked\) cannot be copied"):
        netaug_fx.augment(Locked(), 3, example_inputs=torch.randn(2, 3))
    with pytest.raises(InputError, match=r"no subclass of .*Registered can be made"):
        netaug_fx.augment(Registered(), 3, example_inputs=torch.randn(2, 3))
