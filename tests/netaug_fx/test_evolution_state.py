"""The state of a split supernet: changes made after the split, state within a dense pass, and what travels along."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import netaug_fx
from netaug_fx.errors import CheckError, CheckpointError, InputError
from netaug_fx.supernet import Supernet
from tests.invariants import loss
from tests.netaug_fx.split_nets import differing, net, split_net, tensors, train

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


# -- changes after the split -----------------------------------------------------------------------


class Counting(nn.Sequential):
    """Counts its calls, and scales by an attribute."""

    calls, scale = 0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = super().forward(x) * self.scale
        return y


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_the_dense_net_has_what_was_changed_after_the_split(method: str) -> None:
    model = Counting(*net(), nn.Dropout(0.5))
    supernet: Any = netaug_fx.evolve(model, 0.5, method, example_inputs=torch.zeros(2, 3, 8, 8))
    supernet[1].eps, supernet[1].momentum, supernet[7].p, supernet.scale = 0.3, 0.01, 0.9, 2.0
    supernet[0].weight.requires_grad_(False)
    with supernet.eval().dense():
        expected = supernet(IMAGES)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert torch.equal(dense(IMAGES), expected)
    assert (dense[1].eps, dense[1].momentum, dense[7].p, dense.calls) == (0.3, 0.01, 0.9, supernet.calls + 1)
    assert [p.requires_grad for p in dense.parameters()] == [p is not supernet[0].weight for p in base_of(supernet)]
    assert (dense[0].out_channels, dense[1].num_features, dense[6].in_features) == (8, 8, 6)
    assert str(dense) == str(model).replace("eps=1e-05, momentum=0.1", "eps=0.3, momentum=0.01").replace("=0.5", "=0.9")


def base_of(supernet: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in supernet.named_parameters() if "_netaug" not in name]


def test_verify_holds_the_slim_net_against_the_supernet_as_it_is() -> None:
    supernet: Any = split_net()
    supernet[1].eps = 0.3
    slim = netaug_fx.extract(supernet)
    assert netaug_fx.verify(slim, supernet, IMAGES[:1], onnx=False)["fit hypothesis"].passed


def test_parameters_frozen_after_the_split_are_not_reset() -> None:
    supernet: Any = split_net()
    supernet[3].requires_grad_(False)
    before = tensors(netaug_fx.extract(supernet, dense=True))
    netaug_fx.reset_(supernet)
    changed = differing(before, tensors(netaug_fx.extract(supernet, dense=True)))
    assert changed.isdisjoint({"3.weight", "3.bias"})
    assert changed >= {"0.weight", "6.weight"}


class Other(nn.Module):
    """Its instances choose their forward, and it holds a width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.forward = self.other

    def other(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).view(-1, 2, 4).flatten(1))
        return y


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_a_forward_that_the_instance_chose_comes_back(method: str) -> None:
    x, supernet = torch.randn(2, 4), netaug_fx.evolve(Other(), 0.5, method, example_inputs=torch.zeros(2, 4))
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert isinstance(dense.forward, MethodType)
    assert dense.forward.__self__ is dense
    with Supernet.dense(supernet):
        assert torch.equal(supernet(x), dense(x))
    assert torch.equal(netaug_fx.extract(supernet)(x), supernet(x))


# -- within a dense pass ---------------------------------------------------------------------------


def read_state(supernet: Supernet) -> Tensor:
    other = split_net()
    other.load_state_dict(supernet.state_dict())
    return mean_of(netaug_fx.extract(other, dense=True))


READ: dict[str, Callable[[Supernet], Tensor]] = {
    "state_dict": read_state,
    "copy": lambda supernet: mean_of(netaug_fx.extract(copy.deepcopy(supernet), dense=True)),
    "pickle": lambda supernet: mean_of(netaug_fx.extract(pickle.loads(pickle.dumps(supernet)), dense=True)),
    "dense": lambda supernet: mean_of(netaug_fx.extract(supernet, dense=True)),
    "slim": lambda supernet: torch.cat([mean_of(netaug_fx.extract(supernet)), torch.full((4,), torch.nan)]),
}


def mean_of(net: Any) -> Tensor:
    mean: Tensor = net[1].running_mean
    return mean


@pytest.mark.parametrize("way", READ)
def test_statistics_of_a_dense_pass_under_way_are_seen(way: str) -> None:
    supernet, plain = split_net(), net()
    with supernet.dense():
        for _ in range(2):
            supernet(IMAGES)
            plain(IMAGES)
            found, expected = READ[way](supernet), mean_of(plain)
            assert torch.equal(found[:4], expected[:4])
            assert way == "slim" or torch.equal(found, expected)
    assert torch.equal(mean_of(netaug_fx.extract(supernet, dense=True)), mean_of(plain))


def test_a_state_that_is_loaded_within_a_dense_pass_stays() -> None:
    supernet, other = split_net(), split_net()
    train(other)
    with supernet.dense():
        supernet(IMAGES)
        supernet.load_state_dict(other.state_dict())
    assert not differing(tensors(other), tensors(supernet))


def test_validation_in_inference_mode_may_come_before_training_in_one_dense_pass() -> None:
    supernet, plain = split_net(), net()
    for one in (supernet, plain):
        with Supernet.dense(supernet) if one is supernet else torch.enable_grad():  # type: ignore[attr-defined]
            with torch.inference_mode():
                one.eval()(IMAGES)
            loss([one.train()(IMAGES)]).backward()
    assert torch.equal(mean_of(netaug_fx.extract(supernet, dense=True)), mean_of(plain))


def test_passes_that_cannot_be_nested_say_so_and_leave_the_supernet_as_it_was() -> None:
    supernet = split_net().eval()
    slim, widths = supernet(IMAGES), supernet.widths
    with supernet.dense():
        dense = supernet(IMAGES)
        with pytest.raises(InputError, match="leave it first"), supernet.augmented():
            supernet(IMAGES)
        with pytest.raises(InputError, match="leave its context first"), supernet.dense():
            supernet(IMAGES)
        assert torch.equal(supernet(IMAGES), dense)
    with supernet.augmented(supernet.widest):
        with pytest.raises(InputError, match="within another pass"), supernet.dense():
            supernet(IMAGES)
        assert supernet.widths == supernet.widest
    with pytest.raises(ZeroDivisionError), supernet.dense():
        raise ZeroDivisionError
    assert supernet.widths == widths
    assert torch.equal(supernet(IMAGES), slim)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(checkpoint(self.body, x, use_reentrant=False))
        return y


def test_checkpointed_activations_are_computed_again_within_the_dense_pass() -> None:
    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(5, 4)
    supernet = netaug_fx.evolve(model, 0.5, example_inputs=x)
    loss([model(x)]).backward()
    with supernet.dense():
        loss([supernet(x)]).backward()
    first: Any = supernet.body[0]  # type: ignore[index]
    expected: Any = model.body[0].weight.grad
    assert torch.equal(first.weight.grad, expected[:4])
    with supernet.dense():
        late = loss([supernet(x)])
    with pytest.raises(RuntimeError, match=r"shape|metadata"):
        late.backward()


# -- buffers that a forward replaces ---------------------------------------------------------------


class Replacing(nn.Module):
    """Keeps what it saw in buffers, in one way or another."""

    def __init__(self, way: str, start: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.way, self.start, self.calls = way, start, 0
        self.seen: Tensor | None
        self.mean: Any
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.calls += 1
        if self.calls > self.start:
            self.replace_(x, y.detach())
        out: Tensor = self.b(y + self.mean)
        return out

    def replace_(self, x: Tensor, y: Tensor) -> None:
        if self.way == "shape":
            self.seen = x[:, 0]
        elif self.way == "nothing":
            self.seen = None
        elif self.way == "batch":
            self.mean = self.mean + y
        elif self.way == "table":
            self._buffers["mean"] = self.mean * 0.9 + y.mean(0)
        elif self.way == "data":
            self.mean.data = self.mean * 0.9 + y.mean(0)
        elif not hasattr(self, "new"):
            self.register_buffer("new", y.mean(0))


@pytest.mark.parametrize("way", ["shape", "nothing"])
def test_a_buffer_may_become_another_one_where_no_width_is_in_it(way: str) -> None:
    torch.manual_seed(0)
    model, x = Replacing(way), torch.randn(5, 4)
    supernet = netaug_fx.evolve(model, 0.5, example_inputs=torch.randn(2, 4))
    for _ in range(2):
        with supernet.dense():
            assert torch.equal(supernet(x), model(x))
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert dense.seen is None if way == "nothing" else torch.equal(dense.seen, x[:, 0])
    assert dense.state_dict().keys() == model.state_dict().keys()


def test_a_buffer_with_widths_in_it_must_keep_its_shape() -> None:
    supernet = netaug_fx.evolve(Replacing("batch", start=100), 0.5, example_inputs=torch.randn(2, 4))
    assert supernet.groups
    supernet.calls = 100  # type: ignore[assignment]
    words = r"buffer 'mean' of shape \[8\] by one of shape \[5, 8\].*'wels'"
    with pytest.raises(InputError, match=words), supernet.dense():
        supernet(torch.randn(5, 4))
    assert supernet.widths == {group.name: group.width for group in supernet.groups}


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("table", CheckError, r"dense net of Replacing does not run.*not through _buffers"),
        ("data", CheckError, r"buffer 'mean' of the dense net differs.*not through _buffers or \.data"),
        ("new", InputError, r"registers the buffer 'new' while it runs: run the model once before evolve"),
    ],
)
def test_buffers_that_cannot_be_followed_are_named(way: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        netaug_fx.evolve(Replacing(way), 0.5, example_inputs=torch.randn(2, 4))


# -- what travels ----------------------------------------------------------------------------------


class Scale(nn.Module):
    """A parameter without an initialisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8) + torch.rand(1) * 100)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) * self.scale)
        return y


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_a_loaded_state_is_reset_as_the_saved_one_would_have_been(method: str) -> None:
    """In a program that made the model with other weights, and split it with another seed."""
    torch.manual_seed(0)
    ours = netaug_fx.evolve(Scale(), 0.5, method, example_inputs=torch.zeros(2, 4), seed=5)
    torch.manual_seed(1)
    resumed = netaug_fx.evolve(Scale(), 0.5, method, example_inputs=torch.zeros(2, 4), seed=6)
    resumed.load_state_dict(ours.state_dict())
    for one in (ours, resumed):
        netaug_fx.reset_(one)
    assert not differing(tensors(ours), tensors(resumed))


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_a_state_of_another_keep_is_refused(method: str) -> None:
    """Of ``wels`` it was loaded, and other weights were taken for those that are fit."""
    one, other = (netaug_fx.evolve(net(), k, method, example_inputs=torch.zeros(2, 3, 8, 8)) for k in (0.5, 0.45))
    before = tensors(one)
    with pytest.raises(CheckpointError, match=r"split with keep=0\.45, and this supernet with keep=0\.5"):
        one.load_state_dict(other.state_dict())
    assert not differing(before, tensors(one))


def test_a_state_of_another_kind_of_supernet_is_refused() -> None:
    supernet = split_net()
    augmented = netaug_fx.augment(net(), example_inputs=torch.zeros(2, 3, 8, 8))
    for one, other in ((supernet, augmented), (augmented, supernet)):
        with pytest.raises(CheckpointError, match="another kind of supernet"):
            one.load_state_dict(other.state_dict(), strict=False)


def test_channels_of_a_split_supernet_are_not_sorted() -> None:
    supernet = split_net()
    before = tensors(supernet)
    with pytest.raises(InputError, match="sort_channels_ would exchange channels"):
        netaug_fx.sort_channels_(supernet)
    assert not differing(before, tensors(supernet))
