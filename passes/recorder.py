"""Watches a model run operator by operator: applies the rules, and writes down what each operator gave."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import netaug_fx.passes as _passes
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed, Mismatch, Type
from netaug_fx.passes.context import Context, Dims, Refusal
from netaug_fx.passes.leaves import LeafCall, Removable, follow_leaves, location_of
from netaug_fx.passes.rules import LeafRule, ModuleRule, RuleResult, bind, lookup, lookup_module, tensor_leaves
from netaug_fx.passes.tracer import Call

_OWN_FOLDERS = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep
    for file in (torch.__file__, _passes.__file__ or "", fx.__file__ or "")
)
_OWN_FILES = ("<eval_with_key>", "<frozen", os.path.abspath(__file__))
_TRACE_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_NODE = "netaug"
_LIFTS = ("aten::lift_fresh", "aten::lift_fresh_copy")  # what ``torch.tensor`` calls
_MANY = 4096


@dataclass(frozen=True)
class Operand:
    """A tensor argument of a recorded operator: shape and types, in place of the tensor."""

    shape: tuple[int, ...]
    dims: tuple[Type, ...]


def is_operand(leaf: Any) -> bool:
    """Tells pytree functions where to stop."""
    return isinstance(leaf, Operand)


def plain_arguments(arguments: Any) -> str:
    """The arguments of an operator that are no tensors, in words."""
    leaves = pytree.tree_leaves(arguments, is_leaf=is_operand)
    return repr([leaf for leaf in leaves if not is_operand(leaf) and not isinstance(leaf, Tensor)])


@dataclass(frozen=True)
class OpRecord:
    """One operator of a run, or one call of a leaf: where it was called, with what, the types of its results, what it
    takes statistics across, and what is wrong with its rule (there is none, or it fails)."""

    func: Any  # an OpOverload, or a LeafCall
    module: str
    location: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    shapes: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[Type, ...], ...]
    mixes: tuple[Type, ...] = ()
    fault: str = ""
    constant: str = ""  # the numbers of a small tensor that the forward made from them

    @property
    def op(self) -> str:
        """The operator's name with its overload, such as ``aten::add.Tensor``."""
        return str(self.func)


@dataclass(frozen=True)
class NodeRecord:
    """One call of a traced node: the types of its result (a tree like the result), and noted integers."""

    result: Any
    notes: dict[str, Type]


def node_records(node: fx.Node) -> list[NodeRecord]:
    """What was recorded for a node, one entry a call of its module."""
    records: list[NodeRecord] = node.meta.setdefault(_NODE, [])
    return records


class _Fault(Refusal):
    """There is no rule, or it gave something that is no type of the result: a better rule would help."""


class RuleMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies a rule to every operator that runs under it, and records the operator."""

    def __init__(
        self,
        context: Context,
        integers: dict[str, dict[str, Type]],
        attributes: Mapping[str, Collection[str]],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self.integers = integers
        self.attributes = attributes
        self.records: list[OpRecord] = []
        self.path: list[str] = [""]
        self.calls: dict[str, Call] = {}
        self.results: dict[str, Any] = {}
        self.node: fx.Node | None = None
        self.node_notes: dict[str, Type] = {}
        self.in_leaf = False

    @property
    def running(self) -> str:
        """Path of the innermost module whose forward runs, or was left by an error."""
        return self.path[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ctx = self.context
        ctx.before = {}
        if func._schema.is_mutable:
            ctx.before = {} if self.in_leaf else {id(t): ctx.dims(t) for t in tensor_leaves((args, kwargs))}
            for index, argument in enumerate(func._schema.arguments):
                value = args[index] if index < len(args) else kwargs.get(argument.name)
                if argument.is_write and isinstance(value, Tensor):
                    ctx.writes(value, tensor_leaves((args, kwargs)))
        if self.in_leaf:
            return func(*args, **kwargs)
        operands = self._operands(args, kwargs)
        out = func(*args, **kwargs)
        ctx.op, ctx.module, ctx.location, ctx.notes = str(func), self.path[-1], self._location(), {}
        results = tensor_leaves(out)
        mixing_before = len(ctx.mixing)
        fault = ""
        if results or lookup(func) is not None:
            fault = self._type_results(
                tensor_leaves((args, kwargs)), results, lambda: self._by_rule(func, args, kwargs, out, results)
            )
        mixes = tuple(t for mixing in ctx.mixing[mixing_before:] for t in mixing.over)
        self._record(func, operands, results, mixes, fault, constant_of(func, args))
        return out

    def enter_leaf(self) -> None:
        """What runs from here on is not looked at: a rule states what it does."""
        self.in_leaf = True

    def leave_leaf(self, rule: LeafRule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Types a leaf's output by its rule; where that fails, everything the leaf touches stays as it is."""
        self.in_leaf = False
        call, ctx = LeafCall.of(rule), self.context
        ctx.op, ctx.module, ctx.location, ctx.notes = str(call), self.path[-1], location_of(module), {}
        results, operands = tensor_leaves(output), self._operands(args, kwargs)
        inputs = [*tensor_leaves((args, kwargs)), *module.parameters(), *module.buffers()]
        mixing_before = len(ctx.mixing)

        def by_rule() -> list[Dims]:
            answer = rule.types(ctx, module, args, kwargs, output)
            return _types_of(answer, f"the leaf rule for {call}", output, results)

        fault = self._type_results(inputs, results, by_rule)
        self._record(call, operands, results, tuple(t for m in ctx.mixing[mixing_before:] for t in m.over), fault)

    def _operands(self, args: Any, kwargs: Any) -> Any:
        ctx = self.context
        return pytree.tree_map_only(Tensor, lambda t: Operand(tuple(t.shape), tuple(ctx.dims(t))), (args, kwargs))

    def _record(
        self,
        func: Any,
        operands: Any,
        results: list[Tensor],
        mixes: tuple[Type, ...],
        fault: str,
        constant: str = "",
    ) -> None:
        ctx = self.context
        if results:
            dims = tuple(tuple(ctx.dims(t)) for t in results)
            shapes = tuple(tuple(t.shape) for t in results)
            self.records.append(
                OpRecord(func, ctx.module, ctx.location, operands, shapes, dims, mixes, fault, constant)
            )
        self._keep_notes()

    def _type_results(self, inputs: list[Tensor], results: list[Tensor], by_rule: Callable[[], list[Dims]]) -> str:
        """Gives the results their types; pins where the rule cannot, and says so if a better rule could."""
        ctx, fault = self.context, ""
        weight = ctx.weight_of(inputs)
        try:
            dims = by_rule()
        except Exception as error:  # whatever a rule cannot solve stays as it is: unknown is never wrong
            solved = isinstance(error, (Refusal, Mismatch))
            text = str(error) if solved else f"its rule failed: {error!r}"
            fault = text if isinstance(error, _Fault) or not solved else ""
            reason = ctx.reason(text)
            for tensor in inputs:
                for dim in ctx.dims(tensor):
                    channels.pin(dim, reason)
            dims = [[Fixed(int(n), reason) for n in tensor.shape] for tensor in results]
        for tensor, types in zip(results, dims, strict=True):
            ctx.set_dims(tensor, types, weight=weight)
        return fault

    def _by_rule(self, func: Any, args: Any, kwargs: Any, out: Any, results: list[Tensor]) -> list[Dims]:
        found = lookup(func)
        if found is None:
            raise _Fault(f"there is no rule for {func._schema.name}; register one with netaug_fx.passes.rules.rule")
        answer = found(self.context, bind(func, args, kwargs, out))
        return _types_of(answer, f"the rule for {func._schema.name}", out, results)

    def _keep_notes(self) -> None:
        """Keeps noted integers for the traced node at hand, and for the module whose attributes they are."""
        notes = self.context.notes
        self.node_notes.update(notes)
        wanted = self.attributes.get(self.context.module, ())
        for name, t in notes.items():
            if name.partition(".")[0] not in wanted:
                continue
            known = self.integers.setdefault(self.context.module, {}).setdefault(name, t)
            try:
                self.context.unify(known, t)
            except Mismatch as error:  # a shared module that is used at two sizes
                for other in (known, t):
                    self.context.pin(other, f"attribute {name!r} of one module stands for two sizes: {error}")

    def apply_module_rule(
        self, module_rule: ModuleRule, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Adds what a module's Python demands beyond its operators."""
        if self.in_leaf:
            return
        ctx = self.context
        ctx.op, ctx.module, ctx.location, ctx.notes = type(module).__name__, self.path[-1], "", {}
        try:
            module_rule(ctx, module, args, kwargs, output)
        except Exception as error:  # as for operators: what cannot be solved stays as it is
            for tensor in [*module.parameters(), *tensor_leaves((args, kwargs, output))]:
                for dim in ctx.dims(tensor):
                    ctx.pin(dim, f"the rule of {type(module).__name__} cannot be met: {error}")
        self._keep_notes()

    def _location(self) -> str:
        if self.node is not None and self.node.stack_trace:
            places = _TRACE_LINE.findall(self.node.stack_trace)
            for file, line in reversed(places):
                if not _own(file):
                    return f"{file}:{line}"
        frame = sys._getframe(2)
        while frame is not None and frame.f_code.co_name != "_run_once":
            if not _own(frame.f_code.co_filename):
                return f"{frame.f_code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return ""


def constant_of(func: Any, args: tuple[Any, ...]) -> str:
    """The numbers that ``torch.tensor(...)`` was given in a forward, as text, in which NaN is NaN; empty for other
    operators, and for many numbers."""
    if func._schema.name not in _LIFTS or isinstance(args[0], FakeTensor) or args[0].numel() > _MANY:
        return ""
    with _disable_current_modes():
        return repr(args[0].tolist())


def _types_of(answer: RuleResult, rule: str, out: Any, results: list[Tensor]) -> list[Dims]:
    """A rule's answer, as one list of types for each tensor of the result."""
    given: Any = [answer] if isinstance(out, Tensor) else ([] if answer is None else answer)
    if not isinstance(given, (list, tuple)) or not all(
        isinstance(types, (list, tuple)) and all(isinstance(t, Type) for t in types) for types in given
    ):
        expected = "a list of types" if isinstance(out, Tensor) else "a list of lists of types"
        raise _Fault(f"{rule} gave {answer!r}, not {expected}, one for each dimension of the result")
    if len(given) < len(results):
        raise _Fault(f"{rule} gave {len(given)} results, not {len(results)}")
    for types, tensor in zip(given, results, strict=False):
        if [t.size for t in types] != list(tensor.shape):
            raise _Fault(f"{rule} gave shape {[t.size for t in types]}, not {list(tensor.shape)}")
    return [list(types) for types in given[: len(results)]]


def _own(file: str) -> bool:
    return file.startswith(_OWN_FOLDERS) or file.startswith(_OWN_FILES)


def follow_modules(model: nn.Module, mode: RuleMode) -> list[Removable]:
    """Hooks that keep ``mode.path`` at the path of the running module, keep the arguments of its first call and the
    classes in its result, and apply module rules.

    Returns:
        The hooks' handles, to be removed by the caller.
    """
    handles: list[Removable] = [*follow_leaves(model, mode)]  # first, so that leaves are left before their path is
    for path, module in model.named_modules():

        def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            mode.path.append(path)
            mode.calls.setdefault(path, pytree.tree_map(lambda leaf: leaf, (args, kwargs)))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            if (module_rule := lookup_module(module)) is not None:
                mode.apply_module_rule(module_rule, module, args, kwargs, output)
            mode.results.setdefault(path, _skeleton(output))
            # an exception that the user's code caught left deeper paths behind
            while len(mode.path) > 1 and mode.path.pop() != path:
                continue

        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    return handles


def _skeleton(value: Any) -> Any:
    """The classes that a result is made of, without its tensors; an interpreted graph's own containers are plain."""
    kind = _PLAIN.get(type(value), type(value))
    if isinstance(value, Mapping):
        return kind, {key: _skeleton(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return kind, [_skeleton(item) for item in value]
    if dataclasses.is_dataclass(value):
        return kind, [_skeleton(getattr(value, each.name)) for each in dataclasses.fields(value)]
    return Tensor if isinstance(value, Tensor) else kind


_PLAIN: dict[type, type] = {immutable_dict: dict, immutable_list: list}


def interpreted(module: nn.Module, graph: fx.Graph) -> Callable[[RuleMode], Callable[..., Any]]:
    """A stand-in for ``module.forward`` that runs ``graph`` and records the types at each node."""
    signature = inspect.signature(module.forward)

    def for_mode(mode: RuleMode) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if mode.in_leaf:
                return type(module).forward(module, *args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return _Recording(module, graph, mode, given.arguments).run()

        return forward

    return for_mode


class _Recording(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, mode: RuleMode, given: Mapping[str, Any]) -> None:
        super().__init__(module, graph=graph)
        self.mode = mode
        self.given = given

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An argument of the forward, by its name."""
        return self.given[str(target).lstrip("*")]

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and records the types of what it gave."""
        before = self.mode.node, self.mode.node_notes
        self.mode.node, self.mode.node_notes = n, {}
        try:
            result = super().run_node(n)
            types = pytree.tree_map_only(
                Tensor, lambda t: Operand(tuple(t.shape), tuple(self.mode.context.dims(t))), result
            )
            node_records(n).append(NodeRecord(types, self.mode.node_notes))
        finally:
            self.mode.node, self.mode.node_notes = before
        return result
