"""Integers that stand for widths follow them, whatever form they are written in; all others are left alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import netaug_fx
from netaug_fx.elastic import STATE, ForwardSource, ModuleState
from netaug_fx.passes.graph import find_groups
from netaug_fx.passes.infer import infer
from netaug_fx.passes.rewrite import carries_sizes, may_carry_sizes, rewrite
from netaug_fx.passes.source_scan import names_used
from netaug_fx.passes.trace import trace
from tests.invariants import assert_target_is_the_model, assert_zeroed_extras_give_the_target

INPUTS = ((torch.rand(2, 3, 4, 4),), {})


def module_with(forward: Callable[..., Any], **shapes: tuple[int, ...]) -> nn.Module:
    """A module of a class of its own with this forward, on features (2, 8, 4, 4)."""
    module: nn.Module = type("Literal", (nn.Module,), {"forward": forward})()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.5))
    return module


def net_around(literal: nn.Module) -> nn.Sequential:
    stem = nn.Conv2d(3, 8, 1)
    features = literal(stem(*INPUTS[0])).flatten(1).shape[1]
    return nn.Sequential(stem, literal, nn.Flatten(), nn.Linear(features, 2))


def attention(self: Any, x: Tensor) -> Tensor:
    """Heads x head width happens to be the number of channels, and the code takes one for the other."""
    b, c, h, w = x.shape
    q = F.conv2d(x, self.q).view(b, 2, 4, h * w).transpose(2, 3)
    v = F.conv2d(x, self.v).view(b, 2, 4, h * w).transpose(2, 3)
    return (q.softmax(2) * v).transpose(2, 3).reshape(b, c, h, w)


def shuffle(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def other_width(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return F.conv2d(x, self.weight).view(b, c, h * w)


REWRITTEN: list[tuple[str, Callable[..., Any], dict[str, tuple[int, ...]]]] = [
    ("view", lambda self, x: x.view(2, 8, 16), {}),
    ("view into factors", lambda self, x: x.view(2, 2, 4, 16), {}),
    ("view of a tuple", lambda self, x: x.view((2, 8, 16)), {}),
    ("view with a factor left to torch", lambda self, x: x.view(2, 8, -1), {}),
    ("reshape", lambda self, x: x.transpose(1, 2).reshape(2, 32, 4), {}),
    ("torch.reshape", lambda self, x: torch.reshape(x, (2, 8, 16)), {}),
    ("torch.reshape by name", lambda self, x: torch.reshape(x, shape=(2, 8, 16)), {}),
    ("expand", lambda self, x: x.mean((1, 2, 3), keepdim=True).expand(2, 8, 4, 4) * 0 + x, {}),
    ("split into sections", lambda self, x: torch.cat(x.split([3, 5], 1)[::-1], 1), {}),
    ("split by size", lambda self, x: x.split(4, 1)[0] * x.split(4, dim=1)[1], {}),
    ("torch.split by name", lambda self, x: torch.split(x, split_size_or_sections=4, dim=1)[1], {}),
    ("slice from the start", lambda self, x: torch.cat([x[:, :3], -x[:, 3:]], 1), {}),
    ("slice to a literal end", lambda self, x: torch.cat([x[:, 3:8], x[:, :3]], 1), {}),
    ("slice of everything", lambda self, x: x[:, :8], {}),
    ("slice of the middle", lambda self, x: x[:, 2:5], {}),
    ("slice from the end", lambda self, x: x[:, -5:], {}),
    ("slice up to the end", lambda self, x: x[:, :-3], {}),
    ("slice after an ellipsis", lambda self, x: x.permute(0, 2, 3, 1)[..., :3], {}),
    ("slice beside None", lambda self, x: x[:, None, :3], {}),
    ("narrow", lambda self, x: x.narrow(1, 2, 4), {}),
    ("torch.narrow from the end", lambda self, x: torch.narrow(x, 1, -3, 3), {}),
    ("roll", lambda self, x: torch.roll(x, 3, 1), {}),
    ("roll backwards by name", lambda self, x: x.roll(shifts=-2, dims=1), {}),
    ("roll of a tuple", lambda self, x: torch.roll(x, (1, 3), (2, 1)), {}),
    ("unflatten", lambda self, x: x.unflatten(1, (2, 4)), {}),
    ("torch.unflatten by name", lambda self, x: torch.unflatten(x, dim=1, sizes=(4, -1)), {}),
    ("zeros", lambda self, x: x + torch.zeros(2, 8, 1, 1), {}),
    ("ones of a tuple", lambda self, x: x * torch.ones((1, 8, 1, 1)), {}),
    ("new_zeros", lambda self, x: x + x.new_zeros(2, 8, 4, 4), {}),
    ("depthwise", lambda self, x: F.conv2d(x, self.weight, padding=1, groups=8), {"weight": (8, 1, 3, 3)}),
    ("grouped", lambda self, x: F.conv2d(x, self.weight, None, 1, 0, 1, 4), {"weight": (12, 2, 1, 1)}),
    ("transposed", lambda self, x: F.conv_transpose2d(x, self.weight, groups=8), {"weight": (8, 1, 2, 2)}),
    ("group norm", lambda self, x: F.group_norm(x, 4, self.weight), {"weight": (8,)}),
    ("a width taken for another", other_width, {"weight": (8, 8, 1, 1)}),
    ("heads x head width taken for channels", attention, {"q": (8, 8, 1, 1), "v": (8, 8, 1, 1)}),
]


@pytest.mark.parametrize(("forward", "shapes"), [case[1:] for case in REWRITTEN], ids=[case[0] for case in REWRITTEN])
def test_literals_follow_the_widths(forward: Callable[..., Any], shapes: dict[str, tuple[int, ...]]) -> None:
    model = net_around(module_with(forward, **shapes))
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])
    assert any("0" in group.writers for group in supernet.groups), "the stem grows"
    state = supernet[1].__dict__[STATE]  # type: ignore[index]
    assert set(state.forwards) == {False, True}
    assert state.sizes
    assert_target_is_the_model(supernet, model, INPUTS)
    assert_zeroed_extras_give_the_target(supernet, INPUTS)


NORMS: list[tuple[str, Callable[..., Any]]] = [
    ("layer norm", lambda self, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,), self.weight)),
    ("layer norm by name", lambda self, x: F.layer_norm(x.permute(0, 2, 3, 1), normalized_shape=(8,))),
    ("rms norm", lambda self, x: F.rms_norm(x.permute(0, 2, 3, 1), (8,), self.weight)),
    ("layer norm of an image", lambda self, x: F.layer_norm(x, (8, 4, 4))),
]


@pytest.mark.parametrize("forward", [case[1] for case in NORMS], ids=[case[0] for case in NORMS])
def test_literals_of_norms_across_channels_follow(forward: Callable[..., Any]) -> None:
    model = net_around(module_with(forward, weight=(8,)))
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])
    assert "0" in {group.name for group in supernet.groups}
    with supernet.augmented(supernet.widest):
        assert supernet(*INPUTS[0]).shape == (2, 2)
    assert_target_is_the_model(supernet, model, INPUTS)


LEFT_ALONE: list[tuple[str, Callable[..., Any]]] = [
    ("sizes from shapes", shuffle),
    ("a size left to torch", lambda self, x: x.view(2, -1, 16)),
    ("flatten", lambda self, x: x.flatten(2)),
    ("size of a dimension", lambda self, x: x.view(x.size(0), x.size(1), -1)),
    ("space", lambda self, x: x[:, :, 1:3, :2]),
    ("whole slices", lambda self, x: x[:, :, 0:]),
]


@pytest.mark.parametrize("forward", [case[1] for case in LEFT_ALONE], ids=[case[0] for case in LEFT_ALONE])
def test_other_integers_are_left_alone(forward: Callable[..., Any]) -> None:
    model = net_around(module_with(forward))
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])
    state = supernet[1].__dict__.get(STATE)  # type: ignore[index]
    assert state is None or state.forwards == {}
    assert_zeroed_extras_give_the_target(supernet, INPUTS)


# -- the pass by itself ----------------------------------------------------------------------------------------------


def test_only_sizes_that_would_come_out_wrong_are_asked_for() -> None:
    model = net_around(module_with(lambda self, x: x.view(2, 2, 4, 16)[:, :, 1:]))
    analysis = infer(model, INPUTS)
    graph = analysis.forwards["1"].graphs[False]
    before = str(graph)
    groups = find_groups(model, analysis)
    found = rewrite(graph, list(groups))
    assert found is not None
    assert [t.size for t in found.sizes] == [2, 4], "the cut after one element stays one"
    assert str(graph) == before, "the traced graph itself stays"
    assert "_netaug" in str(found.graph)
    assert rewrite(graph, []) is None


def test_a_module_called_twice_has_one_text_for_both_calls() -> None:
    literal = module_with(lambda self, x: x.view(2, 8, 16).view(2, 8, 4, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), literal, nn.Conv2d(8, 8, 1), literal, nn.Flatten(), nn.Linear(128, 2))
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])
    assert [(group.name, group.writers) for group in supernet.groups] == [("0", ("0", "2"))]
    assert_zeroed_extras_give_the_target(supernet, INPUTS)


def test_one_integer_for_a_width_and_a_constant_pins() -> None:
    literal = module_with(lambda self, x: x.view(2, 8, 16).view(2, 8, 4, 4))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.literal, self.head = nn.Conv2d(3, 8, 1), literal, nn.Linear(128, 2)

        def forward(self, data: Tensor) -> Tensor:
            constant = self.literal(data.repeat(1, 3, 1, 1)[:, :8])
            return self.head((self.literal(self.stem(data)) * constant.mean()).flatten(1))  # type: ignore[no-any-return]

    model = Two()
    with pytest.raises(netaug_fx.errors.PlanError, match=r"stem\.weight dim 0: "):
        netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])


def test_a_forward_that_depends_on_the_mode_is_rewritten_in_both() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.training).view(2, 8, 16)

    model = net_around(module_with(forward))
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])
    assert_target_is_the_model(supernet, model, INPUTS)
    assert_zeroed_extras_give_the_target(supernet, INPUTS)
    with supernet.train().augmented(supernet.widest):
        assert supernet(*INPUTS[0]).shape == (2, 2)


def test_rewritten_forwards_are_kept_as_text_that_pickles() -> None:
    supernet = netaug_fx.augment(net_around(module_with(shuffle_by_hand)), ratio=2, example_inputs=INPUTS[0])
    state: ModuleState = supernet[1].__dict__[STATE]  # type: ignore[index]
    twin: dict[bool, ForwardSource] = pickle.loads(pickle.dumps(state.forwards))
    assert twin[False].code == state.forwards[False].code
    assert "8" not in twin[False].code.replace("-> ", "")
    data = torch.rand(2, 8, 4, 4)
    assert torch.equal(twin[True].function(supernet[1], data), supernet[1](data))  # type: ignore[index]


def shuffle_by_hand(self: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:, 4:], torch.zeros(2, 8, 4, 4)], 1).view(2, 12, 16)


def test_signatures_are_kept() -> None:
    def forward(self: Any, x: Tensor, *, scale: float = 2.0, shift: float = 0.0) -> Tensor:
        return x.view(2, 8, 16) * scale + shift

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.literal, self.head = nn.Conv2d(3, 8, 1), module_with(forward), nn.Linear(128, 2)

        def forward(self, data: Tensor) -> Tensor:
            return self.head(self.literal(self.stem(data), scale=3.0).flatten(1))  # type: ignore[no-any-return]

    model = Outer()
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=INPUTS[0])
    data = torch.rand(2, 8, 4, 4)
    assert torch.equal(supernet.literal(data, shift=1.0), model.literal(data, shift=1.0))  # type: ignore[attr-defined]
    assert torch.equal(supernet.literal(x=data, scale=1.0), model.literal(data, scale=1.0))  # type: ignore[attr-defined]


# -- which forwards are looked at ------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [case[1] for case in REWRITTEN], ids=[case[0] for case in REWRITTEN])
def test_forwards_with_literals_are_found_by_their_names(forward: Callable[..., Any]) -> None:
    assert may_carry_sizes(names_used(module_with(forward)))


def test_names_are_followed_into_methods_and_functions() -> None:
    class Indirect(nn.Module):
        def forward(self, data: Tensor) -> Tensor:
            return self.helper(data)

        def helper(self, data: Tensor) -> Tensor:
            return far_away(data)

    assert may_carry_sizes(names_used(Indirect()))
    assert not may_carry_sizes(names_used(module_with(lambda self, x: self.child(x).relu())))


def far_away(data: Tensor) -> Tensor:
    return data.view(2, 8, 16)


def test_graphs_without_sizes_carry_none() -> None:
    plain = trace(module_with(lambda self, x: x.relu() + 1)).graph
    sized = trace(module_with(lambda self, x: x.view(2, 8, 16))).graph
    assert isinstance(plain, fx.Graph)
    assert isinstance(sized, fx.Graph)
    assert (carries_sizes(plain), carries_sizes(sized)) == (False, True)
