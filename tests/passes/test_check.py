"""The check: wrong rules, literals out of reach and wrong targets never get through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import CheckError, PlanError
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Concat, Product, Reason, Var
from netaug_fx.passes.check import check
from netaug_fx.passes.check_real import check_target
from netaug_fx.passes.context import Context, Dims
from netaug_fx.passes.infer import infer
from netaug_fx.passes.observe import observe
from netaug_fx.passes.plan import Plan, plan
from netaug_fx.passes.rules import RULES
from netaug_fx.passes.widen import widen
from netaug_fx.supernet import Supernet
from tests.invariants import assert_target_is_the_model, assert_zeroed_extras_give_the_target

INPUTS = ((torch.rand(2, 3, 4, 4),), {})


def checked(model: nn.Module) -> tuple[Plan, dict[Var, Reason]]:
    """One round of infer, plan, widen, check."""
    analysis = infer(model, INPUTS)
    chosen = plan(model, analysis, 2)
    return chosen, check(widen(model, analysis, chosen, mixin=Supernet), analysis, chosen, INPUTS)


class Joins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.mix, self.head = nn.Conv2d(10, 5, 1), nn.Linear(80, 2)

    def forward(self, data: Tensor) -> Tensor:
        joined = torch.cat([self.a(data), self.b(data)], 1)
        return self.head(self.mix(torch.roll(joined, 3, 1)).flatten(1))  # type: ignore[no-any-return]


def test_right_rules_pass() -> None:
    assert checked(Joins())[1] == {}


# -- wrong rules -----------------------------------------------------------------------------------------------------

_cat, _view, _roll, _permute = (RULES[f"aten::{name}"] for name in ("cat", "view", "roll", "permute"))


def swapped_parts(ctx: Context, a: Any) -> Dims:
    dims: Any = _cat(ctx, a)
    return [Concat(t.parts[::-1]) if isinstance(t, Concat) else t for t in dims]


def merged_backwards(ctx: Context, a: Any) -> Dims:
    dims: Any = _view(ctx, a)
    return [Product(t.factors[::-1]) if isinstance(t, Product) else t for t in dims]


def not_rolled(ctx: Context, a: Any) -> Dims:
    return ctx.dims(a.input)


def rolled_elsewhere(ctx: Context, a: Any) -> Dims:
    dims = ctx.dims(a.input)
    first, last = channels.split(dims[1], 3)
    dims[1] = Concat((last, first))
    return dims


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("cat", swapped_parts),
        ("view", merged_backwards),
        ("_unsafe_view", merged_backwards),
        ("roll", not_rolled),
        ("roll", rolled_elsewhere),
    ],
)
def test_a_wrong_rule_is_caught_and_nothing_wrong_comes_out(
    op: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Merges(Joins):
        def forward(self, data: Tensor) -> Tensor:
            joined = torch.roll(torch.cat([self.a(data), self.b(data)], 1), 3, 1)
            mixed = self.mix(joined).permute(0, 2, 3, 1) if op == "_unsafe_view" else self.mix(joined)
            return self.head(mixed.reshape(2, 80))  # type: ignore[no-any-return]

    model = Merges()
    right = netaug_fx.inspect(model, 2, example_inputs=INPUTS[0])
    monkeypatch.setitem(RULES, f"aten::{op}", wrong)
    _, broken = checked(model)
    assert broken
    words = {reason.text for reason in broken.values()}
    assert any("moves the original's channels elsewhere" in text or "its forward" in text for text in words), words
    try:
        supernet = netaug_fx.augment(model, 2, example_inputs=INPUTS[0])
    except PlanError:
        return
    assert len(supernet.groups) < len(right.groups)
    assert_target_is_the_model(supernet, model, INPUTS)
    assert_zeroed_extras_give_the_target(supernet, INPUTS)


def test_a_rule_that_forgets_to_tie_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Adds(Joins):
        def forward(self, data: Tensor) -> Tensor:
            summed = self.a(data) + self.b(data)[:, :4]
            return self.head(self.mix(torch.cat([summed, self.b(data)], 1)).flatten(1))  # type: ignore[no-any-return]

    monkeypatch.setitem(RULES, "elementwise", lambda ctx, a: ctx.dims(a.input))
    _, broken = checked(Adds())
    assert broken
    reason = next(iter(broken.values()))
    assert "its forward fails when channels are added: RuntimeError" in reason.text
    assert reason.op.startswith("aten.")


# -- forwards that width cannot reach --------------------------------------------------------------------------------


class Opaque(nn.Module):
    """A literal width in a forward that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(5, 8, 1)

    def forward(self, data: Tensor) -> Tensor:
        hidden = self.inner(data)
        return hidden.view(int(hidden.shape[0]), 8, 16).relu()  # int() wants a number, which a trace does not have


def test_a_literal_in_an_opaque_forward_pins_its_width_and_the_rest_grows() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), Opaque(), nn.Flatten(), nn.Linear(128, 6), nn.Linear(6, 2))
    supernet = netaug_fx.augment(model, 2, example_inputs=INPUTS[0])
    assert [group.name for group in supernet.groups] == ["0", "3"]
    (pin,) = (pin for pin in supernet.pins if (pin.tensor, pin.dim) == ("1.inner.weight", 0))
    assert "its forward fails when channels are added: RuntimeError: shape '[2, 8, 16]' is invalid" in pin.reason
    assert (pin.op, pin.module) == ("aten.view.default", "1")
    assert pin.location.startswith(__file__)
    assert_zeroed_extras_give_the_target(supernet, INPUTS)


class Branches(nn.Module):
    def __init__(self, branch: str) -> None:
        super().__init__()
        self.branch, self.stem, self.head = branch, nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, data: Tensor) -> Tensor:
        hidden = self.stem(data)
        width = int(hidden.shape[1])  # cannot be traced: the check alone sees what becomes of it
        if width != 8 and self.branch == "other operator":
            hidden = hidden.sigmoid()
        elif self.branch == "assertion":
            assert width == 8, "eight channels, please"
        return self.last(self.head(hidden.mean((2, 3))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("branch", "words"),
    [
        ("other operator", "its forward runs aten.sigmoid.default when channels are added, where it ran aten.mean.dim"),
        ("assertion", "its forward fails when channels are added: AssertionError: eight channels, please"),
    ],
)
def test_forwards_that_ask_for_a_width_pin_it(branch: str, words: str) -> None:
    supernet = netaug_fx.augment(Branches(branch), 2, example_inputs=INPUTS[0])
    assert [group.name for group in supernet.groups] == ["head"]
    assert any(words in pin.reason for pin in supernet.pins if pin.tensor == "stem.weight"), supernet.pins


def test_fewer_operators_are_noticed() -> None:
    class Fewer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, data: Tensor) -> Tensor:
            hidden = self.stem(data)
            out = self.head(hidden)
            return out if int(hidden.shape[-1]) > 8 else out.sigmoid()  # type: ignore[no-any-return]

    model, inputs = Fewer(), ((torch.rand(2, 3),), {})
    analysis = infer(model, inputs)
    chosen = plan(model, analysis, 2)
    broken = check(widen(model, analysis, chosen, mixin=Supernet), analysis, chosen, inputs)
    assert [reason.text for reason in broken.values()] == ["its forward runs other operators when channels are added"]
    with pytest.raises(PlanError, match="other operators when channels are added"):
        netaug_fx.augment(model, example_inputs=inputs[0])


def test_the_check_leaves_the_supernet_as_it_was() -> None:
    model = Joins().train()
    analysis = infer(model, INPUTS)
    chosen = plan(model, analysis, 2)
    supernet = widen(model, analysis, chosen, mixin=Supernet)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in supernet.named_parameters()}
    numbers = torch.get_rng_state()
    assert check(supernet, analysis, chosen, INPUTS) == {}
    for name, tensor in supernet.named_parameters():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert all(module.training for module in supernet.modules())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert supernet(*INPUTS[0]).shape == (2, 2)


# -- the target ------------------------------------------------------------------------------------------------------


def test_a_target_with_another_weight_is_refused() -> None:
    model = Joins()
    supernet = netaug_fx.augment(model, 2, example_inputs=INPUTS[0])
    check_target(supernet, observe(model, INPUTS), INPUTS)
    with torch.no_grad():
        supernet.mix.bias[0] += 1e-6  # type: ignore[attr-defined]
    with pytest.raises(CheckError, match="the target's outputs in evaluation mode differ from those of Joins"):
        check_target(supernet, observe(model, INPUTS), INPUTS)


def test_a_target_that_differs_in_training_only_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    supernet = netaug_fx.augment(model, 2, example_inputs=INPUTS[0])
    supernet[1].p = 0.25  # type: ignore[index]
    with pytest.raises(CheckError, match="the target's outputs in training mode differ"):
        check_target(supernet, observe(model, INPUTS), INPUTS)


def test_a_target_that_keeps_other_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    supernet = netaug_fx.augment(model, 2, example_inputs=INPUTS[0])
    supernet[1].momentum = 0.2  # type: ignore[index]
    with pytest.raises(CheckError, match="the target's buffers after a pass in training mode differ from those of Seq"):
        check_target(supernet, observe(model, INPUTS), INPUTS)


def test_a_target_that_is_not_a_number_in_the_same_places_is_accepted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].bias[0] = float("nan")
    supernet = netaug_fx.augment(model, 2, example_inputs=INPUTS[0])
    assert supernet(*INPUTS[0]).isnan().any()
