"""Slots: where integers that stand for a width are written in a node of a traced forward.

In: a node and what was recorded when it ran. Out: the slots of its integer arguments, each with the type whose size the
integer is: the sizes of a ``view``, the parts of a ``split``, the ends of a slice, the ``groups`` of a convolution.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Type
from netaug_fx.passes.evaluate import evaluate
from netaug_fx.passes.recorder import NodeRecord, Operand, node_records
from netaug_fx.passes.source_scan import SLICE

Slot = tuple[Any, ...]
"""Where an integer stands in a node: ("args" or "kwargs", index or name, then indices into nested tuples and
slices)."""

Found = Iterator[tuple[Slot, Type]]
Finder = Callable[[fx.Node, NodeRecord], Found]


def value_at(node: fx.Node, slot: Slot) -> Any:
    """What stands in a slot."""
    value: Any = node.args if slot[0] == "args" else node.kwargs
    for key in slot[1:]:
        value = getattr(value, key) if isinstance(value, slice) else value[key]
    return value


def put_(node: fx.Node, slot: Slot, new: Any) -> None:
    """Puts something else into a slot."""

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
    value = value_at(node, slot)
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
            if position < len(dims) and value_at(node, slot) != -1:
                yield slot, dims[position]

    return find


def sizes_slot(node: fx.Node) -> Slot | None:
    """Where a node takes the sizes of its result, if it does."""
    if node.op == "call_method" and str(node.target) in _SIZED_METHODS:
        return _argument(node, 1, "shape" if node.target == "reshape" else "size")
    if node.op == "call_function" and node.target in _SIZED_FUNCTIONS:
        index, name = _SIZED_FUNCTIONS[node.target]
        return _argument(node, index, name)
    return None


def _unflatten(node: fx.Node, record: NodeRecord) -> Found:
    dims, before = _result_dims(record), _input_dims(node)
    dim = _argument(node, 1, "dim")
    if dim is None or not before:
        return
    start = value_at(node, dim) % len(before)
    for position, slot in _listed(node, 2, "sizes"):
        if value_at(node, slot) != -1:
            yield slot, dims[start + position]


def _split(node: fx.Node, record: NodeRecord) -> Found:
    parts = record.result
    slot = _argument(node, 1, "split_size_or_sections") or _argument(node, 1, "split_size")
    slot = slot or _argument(node, 1, "split_sizes")
    where = _argument(node, 2, "dim")
    dim = value_at(node, where) if where else 0
    if slot is None or not isinstance(parts, (tuple, list)):
        return
    if isinstance(value_at(node, slot), (tuple, list)):
        yield from (((*slot, position), part.dims[dim]) for position, part in enumerate(parts))
    elif len({part.shape[dim] for part in parts}) == 1:
        yield slot, parts[0].dims[dim]


def parts_cut(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The source and the dimension of a node that cuts a tensor by one number: of parts (``chunk``), or their size."""
    if (node.op == "call_method" and node.target not in ("chunk", "split")) or (
        node.op == "call_function" and node.target not in (torch.chunk, torch.split)
    ):
        return None
    number = next((slot for name in _CUTS if (slot := _argument(node, 1, name)) is not None), None)
    source = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensor"))
    where = _argument(node, 2, "dim")
    dim = value_at(node, where) if where else 0
    if number is None or not isinstance(source, fx.Node) or not isinstance(dim, int):
        return None
    return None if isinstance(value_at(node, number), (tuple, list)) else (source, dim)


def _chunk(node: fx.Node, record: NodeRecord) -> Found:
    """Nothing where parts are alike: their number is right at all widths; ``prepare_`` makes the others a ``split``."""
    yield from ()


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
    start_at, stop_at = (evaluate(bound, {}) for bound in (item.start, item.stop))
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
    dim, start, length = (value_at(node, slot) for slot in slots if slot is not None)
    if isinstance(start, int):
        before, rest = channels.split(dims[dim], start % dims[dim].size)
        yield slots[1] or (), before
        yield slots[2] or (), _result_dims(record)[dim] if isinstance(length, int) else rest


def _roll(node: fx.Node, record: NodeRecord) -> Found:
    slot = _argument(node, 1, "shifts")
    if slot is None:
        return
    if isinstance(value_at(node, slot), (tuple, list)):
        yield from (
            ((*slot, position), record.notes[f"shifts.{position}"]) for position in range(len(value_at(node, slot)))
        )
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
        elif isinstance(value_at(node, slot), (tuple, list)):
            for position in range(len(value_at(node, slot))):
                if f"{name}.{position}" in record.notes:
                    yield (*slot, position), record.notes[f"{name}.{position}"]

    return find


_CUTS = ("chunks", "split_size", "split_size_or_sections")
_SIZED_METHODS = ("view", "reshape", "expand", "new_zeros", "new_ones", "new_empty", "new_full")
_SIZED_FUNCTIONS: dict[Any, tuple[int, str]] = {
    torch.reshape: (1, "shape"),
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn), (0, "size")),
}
_METHODS: dict[str, Finder] = {
    **{name: _sizes(1) for name in _SIZED_METHODS},
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "chunk": _chunk,
    "unflatten": _unflatten,
    "narrow": _narrow,
    "roll": _roll,
}
_FUNCTIONS: dict[Any, Finder] = {
    **{function: _sizes(index, name) for function, (index, name) in _SIZED_FUNCTIONS.items()},
    torch.split: _split,
    torch.chunk: _chunk,
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


SIZE_NAMES = frozenset(
    (*_METHODS, *(function.__name__ for function in _FUNCTIONS if function is not operator.getitem), SLICE)
)


def finder_of(node: fx.Node) -> Finder | None:
    """What finds the slots of a node, if it takes integers that may stand for a width."""
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return None
