"""Rewrite: numbers in a traced forward that stand for a width become expressions of the active widths.

In: the traced graph of one forward, whose nodes carry types. Out: the same graph with, say, ``x.view(b, 2, 58, h, w)``
as ``x.view(b, 2, size(0), h, w)`` and the list of types whose sizes it asks for; or None where nothing must change. A
number that the code computes from shapes is replaced only if it would come out wrong at other widths.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from netaug_fx.elastic import STATE
from netaug_fx.guards import expect
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Mismatch, Type, Var
from netaug_fx.passes.evaluate import UNKNOWN, Evaluation, evaluate
from netaug_fx.passes.recorder import Operand, node_records
from netaug_fx.passes.slots import SIZE_NAMES, Slot, finder_of, parts_cut, put_, sizes_slot, value_at


@dataclass(frozen=True)
class Rewritten:
    """A graph that calls ``self._netaug.size(k)`` for the size of ``sizes[k]``."""

    graph: fx.Graph
    sizes: tuple[Type, ...]


def may_carry_sizes(names: frozenset[str]) -> bool:
    """Whether code that uses these names can hold numbers that stand for a width."""
    return not names.isdisjoint(_NAMES)


def carries_sizes(graph: fx.Graph) -> bool:
    """Whether any node takes numbers that may stand for a width."""
    numbers: set[fx.Node] = set()  # nodes made of shapes and constants alone
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if finder_of(node) is not None or (numbers.intersection(inputs) and (_scalar_slots(node) or _guards(node))):
            return True
        is_shape = (node.target is getattr and node.args[1] == "shape") or node.target == "size"
        if is_shape or (node.op == "call_function" and inputs and numbers.issuperset(inputs)):
            numbers.add(node)
    return False


def prepare_(graph: fx.Graph) -> None:
    """Makes a graph that ``infer`` ran ready to be rewritten.

    Sizes handed over as one tuple (``x.view(x.shape[:-1] + (48,))``) are spelt out one by one, and so are those of
    unlike parts that are cut by one number (``x.chunk(2, 1)`` of an odd width). A module called several
    times has one text, so that integers which stand for widths stand for one and the same.
    """
    for node in list(graph.nodes):
        _spell_out_(graph, node)
        _spell_out_parts_(node)
        _tie_repeated_calls(node)


def _spell_out_(graph: fx.Graph, node: fx.Node) -> None:
    slot = sizes_slot(node)
    value = value_at(node, slot) if slot else None
    sizes = evaluate(value, {}) if isinstance(value, fx.Node) and node_records(node) else None
    if slot is None or not isinstance(sizes, tuple):
        return
    with graph.inserting_before(node):
        put_(node, slot, tuple(graph.call_function(operator.getitem, (value, i)) for i in range(len(sizes))))


def _spell_out_parts_(node: fx.Node) -> None:
    records, cut = node_records(node), parts_cut(node)
    if cut is None or not records:
        return
    source, dim = cut
    results = [record.result if isinstance(record.result, (tuple, list)) else () for record in records]
    if not all(isinstance(part, Operand) for parts in results for part in parts):
        return  # an operator without a rule gave them
    found = {tuple(part.shape[dim] for part in parts) for parts in results}
    widths = next(iter(found))
    cut_dims = [part.dims[dim] for parts in results for part in parts]
    if len(found) != 1 or len(set(widths)) == 1 or any(channels.follows_input(t) for t in cut_dims):
        return
    if any(any(channels.variables(t)) for t in cut_dims):
        node.op, node.target, node.args, node.kwargs = "call_function", torch.split, (source, list(widths), dim), {}


def _tie_repeated_calls(node: fx.Node) -> None:
    finder, records = finder_of(node), node_records(node)
    if finder is None or len(records) < 2:
        return
    first = dict(finder(node, records[0]))
    for record in records[1:]:
        for slot, t in finder(node, record):
            if slot in first and first[slot].size == t.size:
                try:
                    channels.unify(first[slot], t)
                except Mismatch as error:
                    reason = channels.Reason(f"one integer stands for two widths: {error}", module=node.name)
                    channels.pin(first[slot], reason)
                    channels.pin(t, reason)


def needs_rewriting(graph: fx.Graph, growing: Collection[Var], followed: frozenset[str]) -> bool:
    """Whether a forward, run as it is written, would meet numbers that are wrong at other widths.

    Args:
        graph: A traced forward that ``infer`` ran, with types on its nodes.
        growing: The variables that will grow.
        followed: Attributes of the module that follow the active widths by themselves (``groups`` of a convolution).
            The written forward reads them; a traced one holds what they were.
    """
    widths = _arbitrary(growing)
    return any(
        any(_wrong_sizes(node, widths, followed)) or any(_wrong_scalars(node, widths)) or _asks_a_width(node, widths)
        for node in graph.nodes
    )


def rewrite(graph: fx.Graph, growing: Collection[Var]) -> Rewritten | None:
    """Replaces width-bearing numbers in a copy of ``graph``; None if there are none.

    Args:
        graph: A traced forward that ``infer`` ran, with types on its nodes.
        growing: The variables that will grow.
    """
    widths = _arbitrary(growing)
    sizes = {node: dict(_wrong_sizes(node, widths)) for node in graph.nodes}
    scalars = {node: dict(_wrong_scalars(node, widths)) for node in graph.nodes}
    obsolete = {node for node in graph.nodes if _asks_a_width(node, widths)}
    if not (any(sizes.values()) or any(scalars.values()) or obsolete):
        return None
    copy = fx.Graph()
    types: list[Type] = []
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in obsolete:
            continue
        mapped = copies[node] = copy.node_copy(node, lambda n: copies[n])
        for slot, number in scalars[node].items():
            put_(mapped, slot, number)
        with copy.inserting_before(mapped):
            for slot, t in sizes[node].items():
                put_(mapped, slot, copy.call_method("size", (copy.get_attr(STATE), len(types))))
                types.append(t)
    return Rewritten(copy, tuple(types))


def _arbitrary(growing: Collection[Var]) -> dict[Var, int]:
    """Two sizes that agree for an arbitrary growth are one expression; halves and quarters must not grow alike."""
    return {var: var.size * (2 + index * 3 % 5) + index + 1 for index, var in enumerate(growing)}


# -- sizes -----------------------------------------------------------------------------------------


def _wrong_sizes(
    node: fx.Node, widths: Mapping[Var, int], followed: frozenset[str] = frozenset()
) -> Iterator[tuple[Slot, Type]]:
    finder, records = finder_of(node), node_records(node)
    if finder is None or not records or followed.intersection(records[0].notes):
        return
    for call, record in reversed(list(enumerate(records))):
        for slot, t in finder(node, record):
            if _is_wrong(value_at(node, slot), t, widths, call):
                yield slot, t


def _is_wrong(value: Any, t: Type, widths: Mapping[Var, int], call: int) -> bool:
    """Whether an integer differs from the size it stands for at other widths.

    An expression that is not understood is left alone, and so is one for a size that the input takes part in: written
    as a number, it would hold for the example's batch and resolution alone. ``check`` finds those that are wrong.
    """
    if not isinstance(value, fx.Node):
        return isinstance(value, int) and value != channels.size_at(t, widths)
    size = evaluate(value, widths, call)
    wrong = isinstance(size, int) and size not in (channels.size_at(t, widths), -1)
    return wrong and not channels.follows_input(t)


# -- numbers made from widths ----------------------------------------------------------------------

_ARITHMETIC_FUNCTIONS = (
    *(getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod")),
    *(getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv")),
    *(getattr(torch, name) for name in ("add", "sub", "mul", "div", "true_divide", "floor_divide", "pow")),
)
_ARITHMETIC_METHODS = ("add", "sub", "mul", "div", "true_divide", "pow", "add_", "sub_", "mul_", "div_", "pow_")


def _scalar_slots(node: fx.Node) -> list[Slot]:
    """Operands of an elementwise operation that are expressions; numbers, if they come out as such."""
    functions = node.op == "call_function" and node.target in _ARITHMETIC_FUNCTIONS
    if not functions and not (node.op == "call_method" and node.target in _ARITHMETIC_METHODS):
        return []
    slots: list[Slot] = [("args", index) for index in range(len(node.args))]
    return [slot for slot in slots if isinstance(value_at(node, slot), fx.Node)]


def _wrong_scalars(node: fx.Node, widths: Mapping[Var, int]) -> Iterator[tuple[Slot, int | float]]:
    """Numbers that a tensor is scaled or shifted by, where they are made from widths: they stay the target's.

    ``q * (q.shape[-1] ** -0.5)`` would otherwise scale the target's channels anew at every width.
    """
    records = node_records(node)
    if not records or not isinstance(records[0].result, Operand):
        return
    for slot in _scalar_slots(node):
        number = _only_by_width(value_at(node, slot), widths)
        if isinstance(number, (int, float)):
            yield slot, number


def _asks_a_width(node: fx.Node, widths: Mapping[Var, int]) -> bool:
    """Whether a node guards a condition that widths alone change: the target's way is then the way of all widths."""
    return _guards(node) and _only_by_width(node.args[0], widths) is not None


def _guards(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is expect


def _only_by_width(value: Any, widths: Mapping[Var, int]) -> Any:
    """An expression's value in the original, if other widths change it and the input takes no part; else None."""
    at_home, elsewhere = Evaluation({}), Evaluation(widths)
    original, changed = at_home.of(value), elsewhere.of(value)
    if UNKNOWN in (original, changed) or isinstance(original, Operand) or original == changed:
        return None
    return None if at_home.reads_input or elsewhere.reads_input else original


_NAMES = SIZE_NAMES | {"shape", "size"}
