"""Labels run through moving operators: a type that lies about where channels go is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Concat, Product, Type, Var
from netaug_fx.passes.context import Context
from netaug_fx.passes.labels import misplaced
from netaug_fx.passes.recorder import OpRecord, RuleMode
from tests.passes.watching import x

MOVED = "moves the original's channels elsewhere than its types say"


def recorded(function: Callable[..., Any], *operands: Tensor) -> tuple[OpRecord, list[Tensor], dict[Var, int]]:
    """The last operator of a call, the same call's operands with dimension 1 three wider, and these widths."""
    context = Context()
    for operand in operands:
        context.set_dims(operand, [channels.fresh(int(n)) for n in operand.shape], weight=False)
    mode = RuleMode(context, {}, {})
    with torch.no_grad(), mode:
        function(*operands)
    kept = [context.dims(operand) for operand in operands]
    free = [var for dims in kept for var in channels.variables(dims[1])]
    widths = {var: var.size + 3 for var in free}
    wide = [torch.zeros([channels.size_at(t, widths) for t in dims]) for dims in kept]
    return mode.records[-1], wide, widths


RIGHT: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("unsqueeze", lambda t: t.unsqueeze(1), (1,)),
    ("repeat", lambda t: t.repeat(1, 2, 1), ([1, 2, 1],)),
    ("pad", lambda t: F.pad(t, (0, 0, 1, 2)), ([0, 0, 1, 2],)),
]


@pytest.mark.parametrize(("function", "arguments"), [case[1:] for case in RIGHT], ids=[case[0] for case in RIGHT])
def test_right_types_pass(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    record, wide, widths = recorded(function, x(2, 4, 5))
    checked: set[Any] = set()
    assert misplaced(record, (*wide, *arguments), {}, widths, checked) == ""
    assert len(checked) == 1


def with_result(record: OpRecord, dim: int, t: Type) -> OpRecord:
    """The record with another claim about its first result."""
    dims = list(record.dims[0])
    dims[dim] = t
    return replace(record, dims=(tuple(dims), *record.dims[1:]))


def test_a_concatenation_in_the_wrong_order_is_found() -> None:
    record, (a, b), widths = recorded(lambda *t: torch.cat(t, 1), x(2, 4), x(2, 3))
    assert misplaced(record, ([a, b], 1), {}, widths, set()) == ""
    assert isinstance(record.dims[0][1], Concat)
    wrong = with_result(record, 1, Concat(record.dims[0][1].parts[::-1]))
    assert misplaced(wrong, ([a, b], 1), {}, widths, set()) == f"aten.cat.default {MOVED}"


def test_a_view_that_merges_in_the_wrong_order_is_found() -> None:
    record, (wide,), widths = recorded(lambda t: t.view(2, 20), x(2, 4, 5))
    size = [2, 7 * 5]
    assert channels.size_at(record.dims[0][1], widths) == 35
    assert misplaced(record, (wide, size), {}, widths, set()) == ""
    merged = record.dims[0][1]
    assert isinstance(merged, Product)
    wrong = with_result(record, 1, Product(merged.factors[::-1]))
    assert MOVED in misplaced(wrong, (wide, size), {}, widths, set())


def test_a_widened_call_with_another_shift_is_found() -> None:
    record, (wide,), widths = recorded(lambda t: torch.roll(t, 1, 1), x(2, 5, 3))
    first, last = channels.resolve(record.dims[0][1]).parts  # type: ignore[union-attr]
    assert (first.size, last.size) == (1, 4)
    assert misplaced(record, (wide, [1], [1]), {}, widths, set()) == ""
    assert MOVED in misplaced(record, (wide, [2], [1]), {}, widths, set())


def test_expanding_into_new_channels_is_no_mistake() -> None:
    gate = x(2, 1, 5)
    context = Context()
    context.set_dims(gate, [channels.fresh(2), channels.fresh(1), channels.fresh(5)], weight=False)
    mode = RuleMode(context, {}, {})
    with torch.no_grad(), mode:
        result = gate.expand(2, 4, 5)
    (var,) = channels.variables(context.dims(result)[1])
    assert misplaced(mode.records[-1], (torch.zeros(2, 1, 5), [2, 7, 5]), {}, {var: 7}, set()) == ""


@pytest.mark.parametrize(
    ("function", "arguments", "other"),
    [
        (lambda t: t.permute(2, 0, 1), ([2, 0, 1],), ([1, 2, 0],)),
        (lambda t: t.transpose(1, 2), (1, 2), (0, 1)),
        (lambda t: t.flatten(1).t(), (), None),
    ],
    ids=["permute", "transpose", "t"],
)
def test_an_order_of_dimensions_is_held_however_many_elements_there_are(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], arguments: tuple[Any, ...], other: Any
) -> None:
    monkeypatch.setattr("netaug_fx.passes.labels._LARGEST", 1)
    record, (wide,), widths = recorded(function, x(2, 4, 1))
    wide = wide if other else wide.flatten(1)
    assert misplaced(record, (wide, *arguments), {}, widths, set()) == ""
    swapped = replace(record, dims=(record.dims[0][::-1],))
    assert MOVED in misplaced(swapped, (wide, *arguments), {}, widths, set())
    if other:
        assert MOVED in misplaced(record, (wide, *other), {}, widths, set())


def test_operators_that_compute_are_left_alone() -> None:
    record, wide, widths = recorded(torch.relu, x(2, 4))
    assert misplaced(with_result(record, 0, record.dims[0][1]), (wide[0],), {}, widths, set()) == ""


def test_a_call_found_right_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    record, (wide,), widths = recorded(lambda t: t.unsqueeze(1), x(2, 4, 5))
    checked: set[Any] = set()
    misplaced(record, (wide, 1), {}, widths, checked)
    monkeypatch.setattr("netaug_fx.passes.labels._call", lambda *_: pytest.fail("run again"))
    assert misplaced(record, (wide, 1), {}, widths, checked) == ""
