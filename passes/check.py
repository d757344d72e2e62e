"""Check: the supernet is held against what the types predict, before it is handed over.

In: the supernet, its ``Analysis`` and ``Plan``. Out: the variables that break something, with reasons (to be refused by
the next plan); none if all is well. The supernet runs on fake tensors at several widths, and every operator's shapes
are compared with the types' prediction; operators that only move elements are run on integer labels besides, so that
the moved labels, not index code, tell where the original's channels sit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from netaug_fx.elastic import STATE, Active, ModuleState, extra_blocks
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Reason, Type, Var
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.graph import Group
from netaug_fx.passes.infer import Analysis, Inputs
from netaug_fx.passes.labels import MOVING, misplaced
from netaug_fx.passes.layout import Widths
from netaug_fx.passes.leaves import LeafCall, leaves_followed
from netaug_fx.passes.plan import Plan
from netaug_fx.passes.recorder import OpRecord, constant_of, is_operand
from netaug_fx.passes.rules import LeafRule, tensor_leaves
from netaug_fx.passes.running import neutral, quiet

_SIZES = frozenset(
    (
        "size",
        "sizes",
        "input_sizes",
        "output_size",
        "normalized_shape",
        "groups",
        "group",
        "N",
        "C",
        "HxW",
        "num_groups",
    )
)
"""Names of arguments of operators that are sizes."""


class _Disagreement(Exception):
    """An operator gave something else than the types predict."""

    def __init__(self, record: OpRecord | None, text: str) -> None:
        super().__init__(text)
        self.record = record
        self.text = text


def check(supernet: nn.Module, analysis: Analysis, plan: Plan, inputs: Inputs, *, seed: int = 0) -> dict[Var, Reason]:
    """Runs the supernet at two random widths in evaluation mode and at the widest in training mode.

    What runs is a copy on fake tensors, if the model was analysed on such.

    Returns:
        Variables that must stay as they are, with reasons; empty if every operator agrees with the prediction.
    """
    try:
        return _Checking(supernet, analysis, plan, inputs, analysis.on_fake_tensors).run(seed)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return _Checking(supernet, analysis, plan, inputs, fake=False).run(seed)


class _Checking:
    """Copies of the supernet, on fake tensors where its control flow allows, each run at other widths."""

    def __init__(self, supernet: nn.Module, analysis: Analysis, plan: Plan, inputs: Inputs, fake: bool) -> None:
        self.supernet = supernet
        self.analysis = analysis
        self.plan = plan
        self.inputs = inputs
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None

    def run(self, seed: int) -> dict[Var, Reason]:
        generator = random.Random(seed)
        turns = [_by_turns(self.plan.groups, generator, first) for first in (0, 1)]
        for widths, training in ((turns[0], False), (turns[1], False), (self.plan.widest, True)):
            try:
                self._start_anew()
                self._run_at(widths, training)
            except _Disagreement as found:
                return _blame(found, self.analysis, self.plan)
        return {}

    def _start_anew(self) -> None:
        """Makes a copy, since what one run leaves behind (a cache, say) would be found by the next at other widths."""
        memo: dict[int, Any] = {}
        if self.fake_mode is not None:
            memo = {id(block): None for block in extra_blocks(self.supernet)}  # shapes are all that is looked at
            for tensor in [*self.supernet.parameters(), *self.supernet.buffers()]:
                if id(tensor) not in memo:
                    memo[id(tensor)] = self.fake_mode.from_tensor(tensor, static_shapes=True)
        self.running = copy_model(self.supernet, memo)
        state: ModuleState = self.running.__dict__[STATE]
        self.active = state.active
        self.active.shapes_only = self.fake_mode is not None
        if self.analysis.fills_caches:
            with neutral(fast_paths=False), self.fake_mode or nullcontext(), leaves_followed(self.running):
                args, kwargs = pytree.tree_map_only(Tensor, self._own, self.inputs)
                self.running.eval()(*args, **kwargs)

    def _run_at(self, widths: Widths, training: bool) -> None:
        expected = self.analysis.operators[training]
        self.running.train(training)
        by_variable = {var: widths[number] for var, number in self.plan.numbers.items()}
        mode = _Compare(self.active, expected, by_variable)
        with neutral(fast_paths=False), quiet(), ExitStack() as stack:
            stack.enter_context(self.fake_mode or nullcontext())
            args, kwargs = pytree.tree_map_only(Tensor, self._own, self.inputs)
            self.active.scratch = {}
            self.active.widths, self.active.statistics = widths, {}
            stack.enter_context(leaves_followed(self.running, mode))
            stack.enter_context(mode)
            try:
                self.running(*args, **kwargs)
            except (_Disagreement, DataDependentOutputException, DynamicOutputShapeException):
                raise
            except Exception as error:  # the user's code may fail in any way on a width it was not written for
                text = f"its forward fails when channels are added: {type(error).__name__}: {error}"
                raise _Disagreement(mode.upcoming(), text) from error
        if mode.position != len(expected):
            raise _Disagreement(mode.upcoming(), "its forward runs other operators when channels are added")

    def _own(self, tensor: Tensor) -> Tensor:
        return self.fake_mode.from_tensor(tensor, static_shapes=True) if self.fake_mode else tensor.clone()


def _by_turns(groups: Sequence[Group], generator: random.Random, first: int) -> Widths:
    """Random widths, by turns close to the widest and close to the original's.

    At proportional widths, expressions such as a quarter of all channels would come out right. No two are alike for
    groups of equal size (while there are enough), or a missing tie could hide.
    """
    left: dict[tuple[int, int], list[int]] = {}
    widths = []
    for number, group in enumerate(groups):
        span = (group.width, group.choices[-1])
        if not left.get(span):
            left[span] = list(range(span[0], span[1] + 1))
        step = generator.randrange(min(3, len(left[span]) - len(left[span]) // 2))
        widths.append(left[span].pop(step if (number + first) % 2 else -1 - step))
    return tuple(widths)


# One number cuts into equal parts, a list of sizes into unlike ones: what was one may become the other.
_CUTS = {torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default}


class _Compare(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Holds each operator against the recorded one that stands at its place."""

    def __init__(self, active: Active, expected: tuple[OpRecord, ...], widths: Mapping[Var, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.active = active
        self.expected = expected
        self.widths = widths
        self.checked: set[Any] = set()
        self.position = 0
        self.in_leaf = False

    def upcoming(self) -> OpRecord | None:
        """The recorded operator that was to come next."""
        return self.expected[self.position] if self.position < len(self.expected) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = tensor_leaves(out)
        if self.active.assembling or self.in_leaf or not results:
            return out
        record = self._agreeing(func, results)
        wrong = _other_numbers(record, args, kwargs)
        wrong = wrong or misplaced(record, args, kwargs, self.widths, self.checked, ran=func)
        if wrong:
            raise _Disagreement(record, wrong)
        self.position += 1
        return out

    def enter_leaf(self) -> None:
        """What runs from here on was not recorded."""
        self.in_leaf = True

    def leave_leaf(self, rule: LeafRule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A leaf's output is held against its rule."""
        self.in_leaf = False
        if results := tensor_leaves(output):
            self._agreeing(LeafCall.of(rule), results)
            self.position += 1

    def _agreeing(self, func: Any, results: list[Tensor]) -> OpRecord:
        """The recorded operator in the place of ``func``, whose predictions the results meet."""
        record = self.upcoming()
        if record is None or not (record.func == func or {record.func, func} <= _CUTS):
            raise _Disagreement(
                record, f"its forward runs {func} when channels are added, where it ran {record and record.op}"
            )
        for dims, tensor in zip(record.dims, results, strict=True):
            predicted = tuple(channels.size_at(dim, self.widths) for dim in dims)
            if predicted != tuple(tensor.shape):
                text = f"{record.op} gives shape {tuple(tensor.shape)} where its types predict {predicted}"
                raise _Disagreement(record, text)
        return record


def _other_numbers(record: OpRecord, args: Any, kwargs: Any) -> str:
    """What is wrong if an operator is given another number than in the original: one made from a width.

    Sizes may follow the widths: those of operators that move elements, whose labels are followed, and arguments that
    are sizes by their name.
    """
    if (constant := constant_of(record.func, args)) != record.constant:
        return f"a tensor is made of {constant} when channels are added, where it was made of {record.constant}"
    for name, was, now in _by_name(record, args, kwargs):
        kinds = float if name in _SIZES or record.func._schema.name in MOVING else (int, float)
        for before, after in zip(_numbers(was, kinds), _numbers(now, kinds), strict=False):
            if before != after and not (before != before and after != after):
                return f"{record.op} uses {after:g} when channels are added, where it used {before:g}"
    return ""


def _by_name(record: OpRecord, args: Any, kwargs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, recorded value and value at hand of each argument."""
    was, was_named = record.arguments
    for argument, before, after in zip(record.func._schema.arguments, was, args, strict=False):
        yield argument.name, before, after
    yield from ((name, was_named[name], kwargs[name]) for name in was_named.keys() & kwargs.keys())


def _numbers(value: Any, kinds: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(value, is_leaf=is_operand) if isinstance(leaf, kinds)]


def _blame(found: _Disagreement, analysis: Analysis, plan: Plan) -> dict[Var, Reason]:
    """The growing variables at the operator that disagrees: those of its operands and results, else all.

    Raises:
        CheckError: nothing at the operator grows, so refusing variables would not help.
    """
    record = found.record
    types: list[Type] = []
    if record is not None:
        operands = [leaf for leaf in pytree.tree_leaves(record.arguments, is_leaf=is_operand) if is_operand(leaf)]
        types = [dim for operand in operands for dim in operand.dims] + [dim for dims in record.dims for dim in dims]
    blamed = {var for t in types for var in channels.variables(t) if var in plan.numbers}
    place = Reason(found.text, record.op, record.module, record.location) if record else Reason(found.text)
    if not blamed and record is not None:
        blamed = _in_module(record.module, analysis, plan)
    if not blamed:
        blamed = set(plan.numbers)
    return dict.fromkeys(blamed, place)


def _in_module(path: str, analysis: Analysis, plan: Plan) -> set[Var]:
    """Growing variables of the tensors below the nearest enclosing module that has any."""
    while True:
        prefix = f"{path}." if path else ""
        found = {
            var
            for name, dims in analysis.tensors.items()
            if name.startswith(prefix)
            for dim in dims
            for var in channels.variables(dim)
            if var in plan.numbers
        }
        if found or not path:
            return found
        path = path.rpartition(".")[0]
