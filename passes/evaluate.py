"""Evaluate: what an integer expression of a traced forward comes to at other widths, or for another input.

In: a node whose operands were recorded with their types. Out: its value, or ``UNKNOWN`` where it is made of more than
shapes and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Type, Var
from netaug_fx.passes.recorder import Operand, node_records


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
_MOVED = 7  # how far another input's sizes are from the example's: prime, so that few expressions come out alike


def evaluate(value: Any, widths: Mapping[Var, int], call: int = 0, *, moved: bool = False) -> Any:
    """The value of an expression at other widths.

    Args:
        value: A node, or a structure of nodes and plain values.
        widths: Width by variable; others have the example's.
        call: Which of the recorded calls of the forward.
        moved: Whether sizes that follow the model's input are others than in the example.
    """
    return _Evaluation(widths, call, moved).value(value)


class _Evaluation:
    def __init__(self, widths: Mapping[Var, int], call: int, moved: bool) -> None:
        self.widths, self.call, self.moved = widths, call, moved

    def value(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return self._node(item)
        if isinstance(item, (tuple, list)):
            items = [self.value(each) for each in item]
            return UNKNOWN if UNKNOWN in items else tuple(items)
        if isinstance(item, slice):
            ends = self.value((item.start, item.stop, item.step))
            return UNKNOWN if ends is UNKNOWN else slice(*ends)
        return item

    def _node(self, node: fx.Node) -> Any:
        records = node_records(node)
        if len(records) > self.call and isinstance(records[self.call].result, Operand):
            return records[self.call].result
        arguments = self.value(node.args)
        if arguments is UNKNOWN or node.kwargs or not arguments:
            return UNKNOWN
        try:
            if isinstance(arguments[0], Operand):
                return self._of_tensor(node, *arguments)
            if node.op == "call_function":
                return node.target(*arguments)  # type: ignore[operator]
        except (TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
            return UNKNOWN
        return UNKNOWN

    def _of_tensor(self, node: fx.Node, tensor: Operand, *rest: Any) -> Any:
        shape = tuple(self._size(dim) for dim in tensor.dims)
        if node.target is getattr and rest[0] == "shape":
            return shape
        if node.target == "size":
            return shape[rest[0]] if rest else shape
        return len(shape) if node.target in ("dim", "ndimension") else UNKNOWN

    def _size(self, dim: Type) -> int:
        return channels.size_at(dim, self.widths) + _MOVED * (self.moved and channels.follows_input(dim))
