"""Evaluate: what an expression of a traced forward comes to at other widths, and whether the model's input decides it.

In: a node whose operands were recorded with their types. Out: its value, or ``UNKNOWN`` where it is made of more than
shapes and numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed, Type, Var
from netaug_fx.passes.recorder import Operand, node_records


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


def evaluate(value: Any, widths: Mapping[Var, int], call: int = 0) -> Any:
    """The value of an expression at other widths.

    Args:
        value: A node, or a structure of nodes and plain values.
        widths: Width by variable; others have the example's.
        call: Which of the recorded calls of the forward.
    """
    return Evaluation(widths, call).of(value)


class Evaluation:
    """One evaluation of expressions at given widths.

    Attributes:
        reads_input: Whether a size that follows the model's input was read on the way.
    """

    def __init__(self, widths: Mapping[Var, int], call: int = 0) -> None:
        self.widths, self.call = widths, call
        self.reads_input = False
        self.known: dict[fx.Node, Any] = {}

    def of(self, value: Any) -> Any:
        """The value of a node or of a structure of nodes."""
        return self._plain(self._value(value))

    def _value(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            if item not in self.known:
                self.known[item] = self._node(item)
            return self.known[item]
        if isinstance(item, (tuple, list)):
            items = [self._value(each) for each in item]
            return UNKNOWN if UNKNOWN in items else tuple(items)
        if isinstance(item, slice):
            ends = self._plain(self._value((item.start, item.stop, item.step)))
            return UNKNOWN if ends is UNKNOWN else slice(*ends)
        return item

    def _node(self, node: fx.Node) -> Any:
        records = node_records(node)
        if len(records) > self.call and isinstance(records[self.call].result, Operand):
            return records[self.call].result
        arguments = self._value(node.args)
        if arguments is UNKNOWN or node.kwargs or not arguments:
            return UNKNOWN
        try:
            if isinstance(arguments[0], Operand):
                return self._of_tensor(node, *arguments)
            if node.op == "call_function":
                return self._of_numbers(node.target, arguments)
        except (TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
            return UNKNOWN
        return UNKNOWN

    def _of_tensor(self, node: fx.Node, tensor: Operand, *rest: Any) -> Any:
        shape = _Shape(tensor.dims)
        if node.target is getattr and rest[0] == "shape":
            return shape
        if node.target == "size":
            return self._size(shape.dims[self._plain(rest[0])]) if rest else shape
        return len(shape.dims) if node.target in ("dim", "ndimension") else UNKNOWN

    def _of_numbers(self, target: Any, arguments: Any) -> Any:
        first = arguments[0]
        if isinstance(first, _Shape) and target is operator.getitem:  # reads no size but the one that it takes
            found = first.dims[self._plain(arguments[1])]
            return _Shape(found) if isinstance(found, tuple) else self._size(found)
        if isinstance(first, _Shape) and target is len:
            return len(first.dims)
        return target(*self._plain(arguments))

    def _plain(self, value: Any) -> Any:
        """Numbers in place of shapes."""
        if isinstance(value, _Shape):
            return tuple(self._size(dim) for dim in value.dims)
        return tuple(self._plain(item) for item in value) if isinstance(value, tuple) else value

    def _size(self, dim: Type) -> int:
        self.reads_input |= _follows_input(dim)
        return channels.size_at(dim, self.widths)


class _Shape:
    """A shape of which no size was read yet."""

    def __init__(self, dims: tuple[Type, ...]) -> None:
        self.dims = dims


def _follows_input(t: Type) -> bool:
    """As ``channels.follows_input``, and also for sizes of one, which another input may have otherwise."""
    t = channels.resolve(t)
    one = isinstance(t, Fixed) and t.reason is not None and t.reason.text in (channels.OF_INPUT, channels.OF_SPACE)
    return one or channels.follows_input(t)
