"""Rewrite: integers in a traced forward that stand for a width become expressions of the active widths.

In: the traced graph of one forward, whose nodes carry types. Out: the same graph with, say, ``x.view(b, 2, 58, h, w)``
as ``x.view(b, 2, size(0), h, w)`` and the list of types whose sizes it asks for; or None where nothing must change. An
integer that the code computes from shapes is replaced only if it would come out wrong at other widths.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from netaug_fx.elastic import STATE
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Mismatch, Type, Var
from netaug_fx.passes.recorder import NodeRecord, Operand, node_records
from netaug_fx.passes.source_scan import SLICE

Slot = tuple[Any, ...]
"""Where an integer stands in a node: ("args" or "kwargs", index or name, then indices into nested tuples and
slices)."""

Found = Iterator[tuple[Slot, Type]]
Finder = Callable[[fx.Node, NodeRecord], Found]


@dataclass(frozen=True)
class Rewritten:
    """A graph that calls ``self._netaug.size(k)`` for the size of ``sizes[k]``."""

    graph: fx.Graph
    sizes: tuple[Type, ...]


def may_carry_sizes(names: frozenset[str]) -> bool:
    """Whether code that uses these names can hold integers that stand for a width."""
    return not names.isdisjoint(_NAMES)


def carries_sizes(graph: fx.Graph) -> bool:
    """Whether any node takes integers that may stand for a width."""
    return any(_finder(node) is not None for node in graph.nodes)


def tie_repeated_calls(graph: fx.Graph) -> None:
    """A module called several times has one text: integers that stand for widths stand for one and the same."""
    for node in graph.nodes:
        finder, records = _finder(node), node_records(node)
        if finder is None or len(records) < 2:
            continue
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


def rewrite(graph: fx.Graph, growing: Collection[Var], followed: frozenset[str] = frozenset()) -> Rewritten | None:
    """Replaces width-bearing integers in a copy of ``graph``; None if there are none.

    Args:
        graph: A traced forward that ``infer`` ran, with types on its nodes.
        growing: The variables that will grow.
        followed: Attributes of the module that follow the active widths by themselves (``groups`` of a convolution).
    """
    # two sizes that agree for an arbitrary growth are one expression
    widths = {var: var.size * 3 + index + 1 for index, var in enumerate(growing)}
    replacements: dict[fx.Node, dict[Slot, Type]] = {}
    for node in graph.nodes:
        finder, records = _finder(node), node_records(node)
        if finder is None or not records or followed.intersection(records[0].notes):
            continue
        for call, record in reversed(list(enumerate(records))):
            for slot, t in finder(node, record):
                value = _at(node, slot)
                if _is_wrong(value, t, widths, call):
                    replacements.setdefault(node, {})[slot] = t
    if not replacements:
        return None
    copy = fx.Graph()
    sizes: list[Type] = []
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapped = copy.node_copy(node, lambda n: copies[n])
        copies[node] = mapped
        with copy.inserting_before(mapped):
            for slot, t in replacements.get(node, {}).items():
                state = copy.get_attr(STATE)
                _put(mapped, slot, copy.call_method("size", (state, len(sizes))))
                sizes.append(t)
    return Rewritten(copy, tuple(sizes))


def _is_wrong(value: Any, t: Type, widths: Mapping[Var, int], call: int) -> bool:
    """Whether an integer differs from the size it stands for at other widths.

    An expression that is not understood is left alone, and so is one for a size that the input takes part in: written
    as a number, it would hold for the example's batch and resolution alone. ``check`` finds those that are wrong.
    """
    if not isinstance(value, fx.Node):
        return isinstance(value, int) and value != channels.size_at(t, widths)
    size = _evaluate(value, widths, call)
    return isinstance(size, int) and size != channels.size_at(t, widths) and not channels.follows_input(t)


def _evaluate(value: Any, widths: Mapping[Var, int], call: int) -> Any:
    """The value of an integer expression of the graph at other widths; None if it is not made of shapes."""
    if not isinstance(value, fx.Node):
        return value
    records = node_records(value)
    if len(records) > call and isinstance(records[call].result, Operand):
        return records[call].result
    arguments = [_evaluate(argument, widths, call) for argument in value.args]
    first = arguments[0] if arguments else None
    try:
        if isinstance(first, Operand):
            shape = tuple(channels.size_at(dim, widths) for dim in first.dims)
            if value.target is getattr and arguments[1] == "shape":
                return shape
            if value.target == "size":
                return shape[arguments[1]] if len(arguments) > 1 else shape
            return len(shape) if value.target in ("dim", "ndimension") else None
        if value.op == "call_function" and None not in arguments:
            return value.target(*arguments)  # type: ignore[operator]
    except (TypeError, IndexError, ZeroDivisionError, AttributeError):
        return None
    return None


# -- where integers stand --------------------------------------------------------------------------


def _at(node: fx.Node, slot: Slot) -> Any:
    value: Any = node.args if slot[0] == "args" else node.kwargs
    for key in slot[1:]:
        value = getattr(value, key) if isinstance(value, slice) else value[key]
    return value


def _put(node: fx.Node, slot: Slot, new: fx.Node) -> None:
    def replaced(value: Any, keys: Slot) -> Any:
        if not keys:
            return new
        if isinstance(value, slice):
            bounds = {"start": value.start, "stop": value.stop, "step": value.step} | {keys[0]: new}
            return slice(bounds["start"], bounds["stop"], bounds["step"])
        if isinstance(value, dict):
            return {**value, keys[0]: replaced(value[keys[0]], keys[1:])}
        items = [replaced(item, keys[1:]) if index == keys[0] else item for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items

    if slot[0] == "args":
        node.args = replaced(tuple(node.args), slot[1:])
    else:
        node.kwargs = replaced(dict(node.kwargs), slot[1:])


def _argument(node: fx.Node, index: int, name: str) -> Slot | None:
    if len(node.args) > index:
        return ("args", index)
    return ("kwargs", name) if name in node.kwargs else None


def _result_dims(record: NodeRecord) -> tuple[Type, ...]:
    return record.result.dims if isinstance(record.result, Operand) else ()


def _input_dims(node: fx.Node) -> tuple[Type, ...]:
    source = node.args[0] if node.args else node.kwargs.get("input")
    records = node_records(source) if isinstance(source, fx.Node) else []
    return _result_dims(records[0]) if records else ()


def _listed(node: fx.Node, index: int, name: str) -> Iterator[tuple[int, Slot]]:
    """Slots of a list of integers given as one tuple or as separate arguments."""
    slot = _argument(node, index, name)
    if slot is None:
        return
    value = _at(node, slot)
    if isinstance(value, (tuple, list)):
        yield from ((position, (*slot, position)) for position in range(len(value)))
    elif slot[0] == "args":
        yield from ((position, ("args", index + position)) for position in range(len(node.args) - index))
    else:
        yield 0, slot


def _sizes(index: int, name: str = "size") -> Finder:
    """Integers that are the sizes of the result."""

    def find(node: fx.Node, record: NodeRecord) -> Found:
        dims = _result_dims(record)
        for position, slot in _listed(node, index, name):
            if position < len(dims) and _at(node, slot) != -1:
                yield slot, dims[position]

    return find


def _unflatten(node: fx.Node, record: NodeRecord) -> Found:
    dims, before = _result_dims(record), _input_dims(node)
    dim = _argument(node, 1, "dim")
    if dim is None or not before:
        return
    start = _at(node, dim) % len(before)
    for position, slot in _listed(node, 2, "sizes"):
        if _at(node, slot) != -1:
            yield slot, dims[start + position]


def _split(node: fx.Node, record: NodeRecord) -> Found:
    parts = record.result
    slot = _argument(node, 1, "split_size_or_sections") or _argument(node, 1, "split_size")
    slot = slot or _argument(node, 1, "split_sizes")
    where = _argument(node, 2, "dim")
    dim = _at(node, where) if where else 0
    if slot is None or not isinstance(parts, (tuple, list)):
        return
    if isinstance(_at(node, slot), (tuple, list)):
        yield from (((*slot, position), part.dims[dim]) for position, part in enumerate(parts))
    elif len({part.shape[dim] for part in parts}) == 1:
        yield slot, parts[0].dims[dim]


def _getitem(node: fx.Node, record: NodeRecord) -> Found:
    dims = _input_dims(node)
    if not dims:
        return
    items = node.args[1] if isinstance(node.args[1], (tuple, list)) else (node.args[1],)
    used = sum(item is not None and item is not Ellipsis for item in items)
    position = 0
    for number, item in enumerate(items):
        if item is Ellipsis:
            position += len(dims) - used
        elif isinstance(item, slice):
            base: Slot = ("args", 1, number) if isinstance(node.args[1], (tuple, list)) else ("args", 1)
            yield from _bounds(dims[position], item, base)
            position += 1
        elif item is not None:
            position += 1


def _bounds(t: Type, item: slice, base: Slot) -> Found:
    """Both ends of a slice; one counted from the end (negative) becomes the size of what lies before it."""
    start_at, stop_at = (_evaluate(bound, {}, 0) for bound in (item.start, item.stop))
    if item.step not in (None, 1) or any(
        given is not None and not isinstance(value, int)
        for given, value in ((item.start, start_at), (item.stop, stop_at))
    ):
        return
    start, stop, _ = slice(start_at, stop_at).indices(t.size)
    if start >= stop:
        return
    before, rest = channels.split(t, start)
    part, _ = channels.split(rest, stop - start)
    if item.start is not None and start > 0:
        yield (*base, "start"), before
    if stop_at is not None and stop_at <= t.size:
        yield (*base, "stop"), channels.Concat((before, part))


def _narrow(node: fx.Node, record: NodeRecord) -> Found:
    dims = _input_dims(node)
    slots = [_argument(node, index, name) for index, name in ((1, "dim"), (2, "start"), (3, "length"))]
    if not dims or None in slots:
        return
    dim, start, length = (_at(node, slot) for slot in slots if slot is not None)
    if isinstance(start, int):
        before, rest = channels.split(dims[dim], start % dims[dim].size)
        yield slots[1] or (), before
        yield slots[2] or (), _result_dims(record)[dim] if isinstance(length, int) else rest


def _roll(node: fx.Node, record: NodeRecord) -> Found:
    slot = _argument(node, 1, "shifts")
    if slot is None:
        return
    if isinstance(_at(node, slot), (tuple, list)):
        yield from (((*slot, position), record.notes[f"shifts.{position}"]) for position in range(len(_at(node, slot))))
    elif "shifts.0" in record.notes:
        yield slot, record.notes["shifts.0"]


def _trailing(node: fx.Node, record: NodeRecord) -> Found:
    """Integers that are the result's last sizes."""
    dims, listed = _result_dims(record), list(_listed(node, 1, "normalized_shape"))
    for position, slot in listed:
        yield slot, dims[len(dims) - len(listed) + position]


def _noted(name: str, index: int, argument: str) -> Finder:
    """An integer that the operator's rule noted."""

    def find(node: fx.Node, record: NodeRecord) -> Found:
        slot = _argument(node, index, argument)
        if slot is None:
            return
        if name in record.notes:
            yield slot, record.notes[name]
        elif isinstance(_at(node, slot), (tuple, list)):
            for position in range(len(_at(node, slot))):
                if f"{name}.{position}" in record.notes:
                    yield (*slot, position), record.notes[f"{name}.{position}"]

    return find


_METHODS: dict[str, Finder] = {
    **{name: _sizes(1) for name in ("view", "reshape", "expand", "new_zeros", "new_ones", "new_empty", "new_full")},
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "unflatten": _unflatten,
    "narrow": _narrow,
    "roll": _roll,
}
_FUNCTIONS: dict[Any, Finder] = {
    torch.reshape: _sizes(1, "shape"),
    **{function: _sizes(0) for function in (torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn)},
    torch.split: _split,
    torch.unflatten: _unflatten,
    torch.narrow: _narrow,
    torch.roll: _roll,
    operator.getitem: _getitem,
    **{function: _noted("groups", 6, "groups") for function in (F.conv1d, F.conv2d, F.conv3d)},
    **{
        function: _noted("groups", 6, "groups")
        for function in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    },
    F.group_norm: _noted("num_groups", 1, "num_groups"),
    F.layer_norm: _noted("normalized_shape", 1, "normalized_shape"),
    F.rms_norm: _trailing,
}


_NAMES = frozenset(
    (*_METHODS, *(function.__name__ for function in _FUNCTIONS if function is not operator.getitem), SLICE)
)


def _finder(node: fx.Node) -> Finder | None:
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return None
