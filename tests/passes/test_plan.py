"""Which groups grow and how far, and every argument that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError, PlanError
from netaug_fx.models import mobilenet_v2_tiny, mobilenet_v3_035
from netaug_fx.passes.channels import Reason
from netaug_fx.passes.graph import Group, find_groups
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.macs import count
from netaug_fx.passes.plan import Plan, plan
from tests.passes.watching import Apply, analysed


class Unit(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, data: Tensor) -> Tensor:
        return data + self.b(self.a(data).relu())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Analysis]:
    """A stream of 4, two inner groups of 6 and 10."""
    model = nn.Sequential(nn.Linear(3, 4), Unit(4, 6), Unit(4, 10), nn.Linear(4, 2))
    return model, analysed(model, torch.rand(5, 3))


def choices(found: Plan) -> dict[str, tuple[int, ...]]:
    return {group.name: group.choices for group in found.groups}


def half_up(value: float) -> int:
    return int(value + 0.5)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (3, {"0": (4, 8, 12), "1.a": (6, 12, 18), "2.a": (10, 20, 30)}),
        (2.0, {"0": (4, 6, 8), "1.a": (6, 9, 12), "2.a": (10, 15, 20)}),
        (1.3, {"0": (4, 5), "1.a": (6, 7, 8), "2.a": (10, 12, 13)}),
        ([1, 1.5], {"0": (4, 6), "1.a": (6, 9), "2.a": (10, 15)}),
        ([2, 1.5, 2], {"0": (4, 6, 8), "1.a": (6, 9, 12), "2.a": (10, 15, 20)}),
        ({"stream": [1, 1.8, 2.6], "inner": [1, 1.6, 2.2, 2.8]},
         {"0": (4, 7, 10), "1.a": (6, 10, 13, 17), "2.a": (10, 16, 22, 28)}),
        ({"inner": 2}, {"1.a": (6, 9, 12), "2.a": (10, 15, 20)}),
        (lambda group: 2 if group.width == 10 else [1, 3], {"0": (4, 12), "1.a": (6, 18), "2.a": (10, 15, 20)}),
    ],
)  # fmt: skip
def test_forms_of_a_ratio(net: tuple[nn.Module, Analysis], ratio: Any, expected: dict[str, tuple[int, ...]]) -> None:
    assert choices(plan(*net, ratio)) == expected


def test_the_default_is_three(net: tuple[nn.Module, Analysis]) -> None:
    assert choices(plan(*net)) == choices(plan(*net, 3))


def test_a_ratio_function_sees_the_group(net: tuple[nn.Module, Analysis]) -> None:
    seen: list[Group] = []

    def ratio(group: Group) -> float:
        seen.append(group)
        return 2

    plan(*net, ratio)
    assert [(group.name, group.kind, group.width) for group in seen] == [
        ("0", "stream", 4),
        ("1.a", "inner", 6),
        ("2.a", "inner", 10),
    ]


@pytest.mark.parametrize("divisor", [1, 4, 8])
def test_widths_are_rounded_to_the_divisor_and_the_target_stays(net: tuple[nn.Module, Analysis], divisor: int) -> None:
    found = choices(plan(*net, [1, 1.6, 2.7], divisor=divisor))
    for (name, widths), width in zip(found.items(), (4, 6, 10), strict=True):
        assert widths[0] == width, name
        assert all(wider % divisor == 0 for wider in widths[1:])
        expected = {half_up(width * factor / divisor) * divisor for factor in (1.6, 2.7)}
        assert set(widths[1:]) == {wider for wider in expected if wider > width}


def test_groups_are_numbered_in_order(net: tuple[nn.Module, Analysis]) -> None:
    found = plan(*net, 3)
    assert list(found.numbers.values()) == [0, 1, 2]
    assert [var.size for var in found.numbers] == [4, 6, 10]
    assert found.base == (4, 6, 10)
    assert found.widest == (12, 18, 30)
    types = net[1].tensors
    assert found.grows(types["0.weight"][0])
    assert not found.grows(types["0.weight"][1])


# -- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pin", "left"),
    [(["1.a"], ["2.a"]), (["2"], ["1.a"]), (["0"], ["1.a", "2.a"]), (["3", "2.*"], ["1.a"]), (["1.b", "?.a"], [])],
)
def test_pinned_modules_keep_all_their_widths(net: tuple[nn.Module, Analysis], pin: list[str], left: list[str]) -> None:
    if left:
        found = plan(*net, 3, pin=pin)
        assert list(choices(found)) == left
        assert any(entry.reason.startswith("pinned by pin=") for entry in found.pins)
    else:
        with pytest.raises(PlanError, match=r"nothing in this model can be widened \(.*pinned by pin='.*loosen"):
            plan(*net, 3, pin=pin)


def test_refused_widths_stay_with_their_reason(net: tuple[nn.Module, Analysis]) -> None:
    var = next(var for var, group in find_groups(*net).items() if group.name == "1.a")
    found = plan(*net, 3, refused={var: Reason("it broke", "aten.view", "1", "file.py:3")})
    assert list(choices(found)) == ["0", "2.a"]
    pin = next(pin for pin in found.pins if (pin.tensor, pin.dim) == ("1.a.weight", 0))
    assert (pin.reason, pin.op, pin.module, pin.location, pin.width) == ("it broke", "aten.view", "1", "file.py:3", 6)


def test_a_ratio_that_leaves_a_group_says_so(net: tuple[nn.Module, Analysis]) -> None:
    found = plan(*net, {"inner": 2})
    (reason,) = {pin.reason for pin in found.pins if (pin.tensor, pin.dim) == ("0.weight", 0)}
    assert reason == "the ratio leaves the stream group '0' as it is"


def test_widths_that_nothing_reads_say_so() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Apply(lambda m, d: d * m.s.mean(), s=(5,)), nn.Linear(6, 2))
    found = plan(model, analysed(model, torch.rand(4, 3)))
    assert [pin.reason for pin in found.pins if pin.tensor == "1.s"] == [
        "no weight sums over it, so extra channels would have nowhere to go"
    ]


def test_of_the_factors_of_a_dimension_heads_grow() -> None:
    def attention(m: Apply, data: Tensor) -> Tensor:
        q, k, v = (F.linear(data, weight).view(2, 5, 2, 8).transpose(1, 2) for weight in (m.q, m.k, m.v))
        return F.linear(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 16), m.o)

    shapes = {"q": (16, 6), "k": (16, 6), "v": (16, 6), "o": (5, 16)}
    model = nn.Sequential(nn.Linear(3, 6), Apply(attention, **shapes), nn.Linear(5, 2))
    found = plan(model, analysed(model, torch.rand(2, 5, 3)), 2)
    assert sorted(group.width for group in found.groups) == [2, 5, 6], "two heads, not the head width of eight"
    reasons = {var.size: reason.text for var, reason in found.stays.items()}
    assert "grows in its place: both are factors of one dimension" in reasons[8]


def test_of_the_factors_of_a_dimension_the_largest_grows() -> None:
    def outer(m: Apply, data: Tensor) -> Tensor:
        return (F.linear(data, m.a)[:, :, None] * F.linear(data, m.b)[:, None, :]).flatten(1)

    model = nn.Sequential(Apply(outer, a=(4, 3), b=(6, 3)), nn.Linear(24, 2))
    found = plan(model, analysed(model, torch.rand(5, 3)))
    assert [group.width for group in found.groups] == [6]
    assert {pin.reason for pin in found.pins if pin.tensor == "0.a" and pin.dim == 0} == {
        f"group {found.groups[0].name!r} grows in its place: both are factors of one dimension"
    }


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ratio": 0.5}, "ratio must be finite and at least 1, not 0.5"),
        ({"ratio": float("nan")}, "ratio must be finite and at least 1, not nan"),
        ({"ratio": float("inf")}, "ratio must be finite and at least 1, not inf"),
        ({"ratio": []}, r"ratio must be a number or a list of numbers, not \[\]"),
        ({"ratio": "3"}, "ratio must be a number or a list of numbers, not '3'"),
        ({"ratio": [1, "2"]}, "ratio must be finite and at least 1, not '2'"),
        ({"ratio": [1, True]}, "ratio must be finite and at least 1, not True"),
        ({"ratio": None}, "ratio must be a number or a list of numbers, not None"),
        ({"ratio": {"inside": 2}}, "unknown kind 'inside'; the kinds are stream and inner"),
        ({"ratio": {"inner": 0}}, r"ratio\['inner'\] must be finite and at least 1, not 0"),
        ({"ratio": lambda group: -1}, r"ratio\('0'\) must be finite and at least 1, not -1"),
        ({"pin": ["nowhere.*"]}, r"pin='nowhere.\*' matches no module; paths look like '0', '1'"),
        ({"pin": "1"}, r"pin must be a list of module-path globs, such as pin=\['1'\]"),
        ({"divisor": 0}, "divisor must be an integer of at least 1, not 0"),
        ({"divisor": 1.5}, "divisor must be an integer of at least 1, not 1.5"),
        ({"divisor": True}, "divisor must be an integer of at least 1, not True"),
    ],
)
def test_bad_arguments_are_named(net: tuple[nn.Module, Analysis], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(*net, **arguments)


@pytest.mark.parametrize("ratio", [1, [1], [1.01], {"inner": 1}])
def test_a_ratio_that_widens_nothing_is_an_error(net: tuple[nn.Module, Analysis], ratio: Any) -> None:
    with pytest.raises(PlanError, match=r"nothing in this model can be widened \(.*the ratio leaves .*loosen ratio"):
        plan(*net, ratio)


def test_a_model_without_weights_is_an_error() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(PlanError, match="it has no weights"):
        plan(model, analysed(model, torch.rand(2, 3)))


PAPER: dict[str, Any] = {"ratio": {"stream": [1, 1.8, 2.6], "inner": [1, 1.6, 2.2, 2.8]}}


@pytest.fixture(scope="module")
def tiny_as_in_the_paper() -> Any:
    return netaug_fx.augment(mobilenet_v2_tiny(), compound=True, **PAPER)


def test_inner_factors_multiply_with_those_of_the_stream_that_feeds_the_block(tiny_as_in_the_paper: Any) -> None:
    """[NetAug], the table of the targets: the wide MobileNetV2-Tiny has 5.83M parameters, 14 times the MACs."""
    groups = {group.name: group for group in tiny_as_in_the_paper.groups}
    expanded = groups["blocks.2.body.expand.conv"]
    assert (expanded.feeder, expanded.factors) == ("blocks.1.body.project.conv", (1, 1.6, 2.2, 2.8))
    assert expanded.choices[-1] == 353  # 8 channels grow to 21, times the expand ratio 6, times 2.8
    assert sum(p.numel() for p in tiny_as_in_the_paper.parameters()) == pytest.approx(5.83e6, rel=1e-3)
    with tiny_as_in_the_paper.augmented(tiny_as_in_the_paper.widest):
        tiny_as_in_the_paper.eval()
        widest = count(tiny_as_in_the_paper, torch.zeros(1, 3, 144, 144)).macs
    assert widest / 23_499_152 == pytest.approx(14, rel=0.08)


def test_drawn_widths_are_products_of_both_factors(tiny_as_in_the_paper: Any) -> None:
    groups = {group.name: group for group in tiny_as_in_the_paper.groups}
    seen: dict[str, set[int]] = {name: set() for name in groups}
    for _ in range(60):
        drawn = tiny_as_in_the_paper.sample()
        for name, group in groups.items():
            seen[name].add(drawn[name])
            if group.feeder:
                present = drawn[group.feeder] / groups[group.feeder].width
                assert drawn[name] in {group.widened(factor * present) for factor in group.factors}
    assert all(seen[name] <= set(group.choices) for name, group in groups.items())
    assert all(len(found) > 2 for found in seen.values())


def test_in_phase_two_inner_factors_are_alone(tiny_as_in_the_paper: Any) -> None:
    for _ in range(20):
        drawn = tiny_as_in_the_paper.sample(kinds={"inner"})
        for group in tiny_as_in_the_paper.groups:
            allowed = {group.widened(factor) for factor in group.factors} if group.kind == "inner" else {group.width}
            assert drawn[group.name] in allowed


def test_squeezed_channels_follow_the_stream_that_feeds_their_block() -> None:
    supernet = netaug_fx.augment(mobilenet_v3_035(), compound=True, example_inputs=torch.zeros(2, 3, 64, 64), **PAPER)
    groups = {group.name: group for group in supernet.groups}
    for name in ("blocks.3.body.expand.conv", "blocks.3.body.squeeze.reduce"):
        assert groups[groups[name].feeder].kind == "stream"
    assert groups["blocks.3.body.expand.conv"].feeder == groups["blocks.3.body.squeeze.reduce"].feeder


def test_without_compound_factors_are_each_groups_own() -> None:
    supernet = netaug_fx.augment(mobilenet_v2_tiny(), **PAPER)
    assert all(not group.feeder and not group.factors for group in supernet.groups)
