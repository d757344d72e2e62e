"""docs/extending.md is run as a reader would run it; leaf rules and the errors of bad use are held to what it says."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError
from netaug_fx.passes.context import Context, Dims
from netaug_fx.passes.rules import LEAF_RULES, MODULE_RULES, RULES, leaf_rule, lookup_leaf, module_rule, rule
from tests import invariants

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    tables: list[dict[Any, Any]] = [RULES, MODULE_RULES, LEAF_RULES]
    before = [dict(table) for table in tables]
    yield
    for table, rules in zip(tables, before, strict=True):
        table.clear()
        table.update(rules)


def run_page() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Runs the page's blocks in order; gives what was printed, what the page shows, and the names so far."""
    names: dict[str, Any] = {"__name__": "extending"}
    printed = ""
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "net.py", "exec"), names)
            printed = out.getvalue()
        else:
            yield printed, text, names


def test_every_block_of_the_page_runs_and_prints_what_is_shown() -> None:
    compared = 0
    for printed, shown, _ in run_page():
        # the line within the block differs from the line in a file of the reader's
        assert re.sub(r"net\.py:\d+", "net.py", printed) == re.sub(r"net\.py:\d+", "net.py", shown)
        compared += 1
    assert compared == 5


def test_the_pages_nets_grow_and_stay_exact() -> None:
    held = 0
    for _, shown, names in run_page():
        if "supernet" in names and ("(model) (16" in shown or "held by" in shown):
            assert_invariants(names["model"], names["x"])
            held += 1
    assert held == 2


def assert_invariants(model: nn.Module, x: Tensor) -> Any:
    inputs: invariants.Inputs = ((x,), {})
    supernet: Any = netaug_fx.augment(model, ratio=2, example_inputs=x)
    assert netaug_fx.inspect(model, example_inputs=x).growing_share == 1
    invariants.assert_target_is_the_model(supernet, model, inputs)
    invariants.assert_extract_restores(supernet, model, inputs)
    invariants.assert_every_width_runs(supernet, inputs)
    exact, twin = netaug_fx.augment(model.double(), ratio=2, example_inputs=x.double()), model.double()
    invariants.zero_extra_to_target_(exact)
    for widths in invariants.assignments(exact):
        with torch.no_grad(), netaug_fx.Supernet.augmented(exact, widths):
            torch.testing.assert_close(exact(x.double()), twin(x.double()))
    model.float()
    return supernet


# -- leaves ----------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Not to be looked into: projects inside NumPy, and gives the result and its sum over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 6, bias=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, data: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        rows = np.einsum("nlc,dc->nld", data.numpy(force=True), self.inner.weight.numpy(force=True))
        value = torch.from_numpy(rows)
        return {"all": value, "sum": value.sum(1)}


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.leaf = nn.Linear(3, 8), Halves()
        self.head, self.other = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        found = self.leaf(self.stem(data))
        return self.head(found["all"]), self.other(found["sum"])


def fake_halves(module: Halves, data: Tensor) -> dict[str, Tensor]:
    n, length, _ = data.shape
    d = module.inner.weight.shape[0]
    return {"all": data.new_empty(n, length, d), "sum": data.new_empty(n, d)}


def halves(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> list[Dims]:
    """(n, l, c) with weight (d, c) -> (n, l, d) and (n, d); counts its calls."""
    n, length, c = ctx.dims(args[0])
    d, weight_c = ctx.dims(module.inner.weight)
    ctx.unify(c, weight_c)
    ctx.consumes(weight_c)
    ctx.produces(d)
    ctx.writes(module.calls, [])
    return [[n, length, d], [n, d]]


def test_a_leaf_may_hold_modules_and_buffers_and_give_several_tensors() -> None:
    leaf_rule(Halves, fake=fake_halves)(halves)
    model, x = Holder(), torch.rand(2, 5, 3)
    inspection = netaug_fx.inspect(model, example_inputs=x)
    assert [(group.name, group.width, group.readers) for group in inspection.groups] == [
        ("stem", 8, ("leaf",)),
        ("leaf", 6, ("head", "other")),
    ]
    assert inspection.missing == ()
    assert set(inspection.opaque) <= {""}
    supernet: Any = netaug_fx.augment(model, ratio=2, example_inputs=x)
    before = supernet.leaf.calls.clone()
    with supernet.augmented(supernet.widest):
        assert [tuple(t.shape) for t in supernet(x)] == [(2, 5, 4), (2, 2)]
    assert torch.equal(supernet.leaf.calls, before), "an augmented pass leaves the target's buffers alone"
    invariants.zero_extra_to_target_(supernet)
    for widths in invariants.assignments(supernet):
        with torch.no_grad(), netaug_fx.Supernet.augmented(supernet, widths):
            torch.testing.assert_close(supernet(x), model(x))
    assert torch.equal(netaug_fx.extract(supernet)(x)[0], model(x)[0])


def test_an_input_is_found_for_a_model_with_a_leaf() -> None:
    leaf_rule(Halves, fake=fake_halves)(halves)
    model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Linear(3, 8), Halves(), First(), nn.Linear(6, 2))
    assert [group.width for group in netaug_fx.inspect(model).groups] == [8, 6]


class First(nn.Module):
    def forward(self, found: dict[str, Tensor]) -> Tensor:
        return found["all"]


class Fold(nn.Module):
    """Runs on fake tensors, and holds a width as a number that it was made with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, data: Tensor) -> Tensor:
        return data.reshape(-1, self.width).tanh().reshape(data.shape[0], self.width)


def one_by_one(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> Dims:
    """Channels are treated one by one."""
    return ctx.dims(args[0])


def folded() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), Fold(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_leaf_that_fails_on_other_widths_keeps_them() -> None:
    leaf_rule(Fold)(one_by_one)
    inspection = netaug_fx.inspect(folded(), example_inputs=torch.rand(4, 3))
    assert [group.name for group in inspection.groups] == ["2"]
    (pin,) = (pin for pin in inspection.pins if (pin.tensor, pin.dim) == ("0.weight", 0))
    assert "its forward fails when channels are added" in pin.reason or "gives shape" in pin.reason
    assert (pin.op, pin.module) == ("Fold", "1")


class Outer(nn.Module):
    """A leaf with a module inside whose forward would be rewritten elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Fold(6)

    def forward(self, data: Tensor) -> Tensor:
        return self.inside(data)  # type: ignore[no-any-return]


def test_what_is_inside_a_leaf_is_not_rewritten() -> None:
    model, x = nn.Sequential(nn.Linear(3, 6), Outer(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(4, 3)
    plain = netaug_fx.augment(model, example_inputs=x)
    assert [group.width for group in plain.groups] == [6, 8]
    leaf_rule(Outer)(one_by_one)
    supernet: Any = netaug_fx.augment(model, example_inputs=x)
    assert [group.width for group in supernet.groups] == [8]
    assert torch.equal(supernet(x), model(x))


def test_a_leaf_rule_that_fails_is_listed_with_what_it_costs() -> None:
    @leaf_rule(Fold)
    def broken(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> Dims:
        raise KeyError("oh")

    inspection = netaug_fx.inspect(folded(), example_inputs=torch.rand(4, 3))
    (missing,) = inspection.missing
    assert (missing.name, missing.kind, missing.module, missing.module_class) == ("Fold", "leaf", "1", "Fold")
    assert missing.tensors == ("0.weight", "0.bias", "2.weight")
    assert missing.weights == 18 + 6 + 48
    assert missing.location.startswith(__file__)
    assert f"leaf Fold in 1 (Fold) at {missing.location} pins 72 weights: its rule failed: KeyError('oh')" in str(
        inspection
    )
    assert [group.name for group in inspection.groups] == ["2"]


def test_subclasses_of_a_leaf_are_leaves() -> None:
    class Own(Fold):
        pass

    leaf_rule(Fold)(one_by_one)
    found = lookup_leaf(Own(2))
    assert found is not None
    assert found.cls is Fold
    assert lookup_leaf(nn.Linear(2, 2)) is None


def test_a_model_is_left_without_stand_ins() -> None:
    leaf_rule(Halves, fake=fake_halves)(halves)
    model, x = Holder(), torch.rand(2, 5, 3)
    supernet: Any = netaug_fx.augment(model, example_inputs=x)
    for module in (model.leaf, supernet.leaf):
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# -- bad use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda dims: [dims[0]], "the leaf rule for Fold gave shape [4], not [4, 6]"),
        (lambda dims: dims[0], "not a list of types, one for each dimension of the result"),
        (lambda dims: None, "the leaf rule for Fold gave None, not a list of types"),
        (lambda dims: [4, 6], "the leaf rule for Fold gave [4, 6], not a list of types"),
    ],
)
def test_an_answer_that_is_no_type_of_the_result_is_told(answer: Any, problem: str) -> None:
    leaf_rule(Fold)(lambda ctx, module, args, kwargs, output: answer(ctx.dims(args[0])))
    (missing,) = netaug_fx.inspect(folded(), example_inputs=torch.rand(4, 3)).missing
    assert problem in missing.problem


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (lambda: rule("mylib::op.default"), "'mylib::op.default' is no operator's name"),
        (lambda: rule(one_by_one), "rule needs the names of operators"),  # type: ignore[arg-type]
        (lambda: rule(), "rule needs the names of operators"),
        (lambda: rule("mylib::op")("no function"), "rule must be given a function, not 'no function'"),  # type: ignore[arg-type]
        (lambda: module_rule(one_by_one), r"module_rule needs classes of modules, as in @module_rule\(MyModule\), not"),  # type: ignore[arg-type]
        (lambda: module_rule(Fold(2)), "module_rule needs classes of modules"),  # type: ignore[arg-type]
        (lambda: module_rule(Fold)(None), "module_rule must be given a function, not None"),  # type: ignore[arg-type]
        (lambda: leaf_rule(), "leaf_rule needs classes of modules"),
        (lambda: leaf_rule(str), "leaf_rule needs classes of modules"),  # type: ignore[type-var]
        (lambda: leaf_rule(Fold, fake=3), r"leaf_rule\(fake=...\) must be given a function, not 3"),  # type: ignore[arg-type]
        (lambda: [leaf_rule(Fold)(one_by_one) for _ in "ab"], "there is a leaf rule for Fold already; pass replace="),
        (lambda: module_rule(nn.MultiheadAttention)(halves), "there is a module rule for MultiheadAttention already"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_in_registering_are_told_at_once(register: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        register()


def test_a_rule_can_be_replaced() -> None:
    leaf_rule(Fold)(one_by_one)
    leaf_rule(Fold, replace=True)(halves)
    found = lookup_leaf(Fold(2))
    assert found is not None
    assert found.types is halves
