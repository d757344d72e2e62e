"""Labels: integers run through an operator that only moves elements, to see where the original's channels end up.

The operator is run twice on integers, as the original net called it and as the widened net called it. Every element of
the original's result must stand in the widened result exactly where the types say, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Type, Var
from netaug_fx.passes.layout import Grow, layout_of, positions
from netaug_fx.passes.recorder import Operand, OpRecord, is_operand, plain_arguments
from netaug_fx.passes.rules import tensor_leaves

MOVING = frozenset(
    "aten::" + name
    for name in (
        "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "slice", "split", "split_with_sizes",
        "cat", "stack", "select", "unbind", "roll", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle",
        "channel_shuffle", "native_channel_shuffle", "clone", "alias", "index_select", "constant_pad_nd", "unfold",
        "as_strided", "as_strided_",
    )
)  # fmt: skip
"""Operators whose elements are followed, so that numbers among their arguments need no other look."""
_PERMUTING = frozenset("aten::" + name for name in ("permute", "transpose", "t"))
_LARGEST = 1 << 27


def misplaced(
    record: OpRecord, args: Any, kwargs: Any, widths: Mapping[Var, int], checked: set[Any], *, ran: Any = None
) -> str:
    """What is wrong with the places of the original's elements after an operator, or an empty string.

    Args:
        record: The operator as the original net ran it.
        args: Its positional arguments in the widened net.
        kwargs: Its keyword arguments in the widened net.
        widths: The widened net's widths.
        checked: Calls that were found right already, at these widths, to be added to.
        ran: The operator that ran in its place in the widened net, where it is another.
    """
    if not any(_grows(dims, widths) for dims in record.dims):
        return ""
    names = {record.func._schema.name, (ran or record.func)._schema.name}
    if names <= _PERMUTING:
        return _mispermuted(record, args, kwargs, ran or record.func)
    if record.func._schema.name not in MOVING | _PERMUTING:
        return ""
    operands = [leaf for leaf in pytree.tree_leaves(record.arguments, is_leaf=is_operand) if is_operand(leaf)]
    tensors = tensor_leaves((args, kwargs))
    if len(tensors) != len(operands) or any(t.is_complex() for t in tensors):
        return ""
    if any(t.numel() > _LARGEST for t in tensors):
        return f"{record.op} moves more than {_LARGEST:,} elements, too many to follow where they go"
    key = (
        record.func,
        plain_arguments(record.arguments),
        plain_arguments((args, kwargs)),
        *((tuple(t.shape), o.dims) for t, o in zip(tensors, operands, strict=True)),
        *record.dims,
    )
    if key in checked:
        return ""
    with _disable_current_modes(), torch.no_grad():
        original, wide = _labels(operands, widths)
        before = tensor_leaves(_call(record.func, record.arguments, original))
        after = tensor_leaves(_call(ran or record.func, (args, kwargs), wide))
        for dims, small, large in zip(record.dims, before, after, strict=True):
            if record.func._schema.name == "aten::expand":  # repeats into the new channels too
                large = large * _spread(torch.ones_like(small), dims, widths)
            if not torch.equal(_spread(small, dims, widths), large):
                return f"{record.op} moves the original's channels elsewhere than its types say"
    checked.add(key)
    return ""


def _mispermuted(record: OpRecord, args: Any, kwargs: Any, ran: Any) -> str:
    """As ``misplaced``, of an operator that changes nothing but the order of dimensions: however large they are."""
    operand = next(leaf for leaf in pytree.tree_leaves(record.arguments, is_leaf=is_operand) if is_operand(leaf))
    with _disable_current_modes():
        probe = torch.empty(tuple(range(len(operand.shape))), device="meta")  # each dimension has its index for a size
        before = _call(record.func, record.arguments, [probe]).shape
        after = _call(ran, (args, kwargs), [probe]).shape
    expected = [channels.resolve(operand.dims[index]) for index in before]
    if before == after and expected == [channels.resolve(dim) for dim in record.dims[0]]:
        return ""
    return f"{record.op} moves the original's channels elsewhere than its types say"


def _labels(operands: list[Operand], widths: Mapping[Var, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Numbers for all elements of the operands, and the same in wider tensors, whose new elements are 0."""
    original, wide, start = [], [], 1
    for operand in operands:
        count = 1
        for size in operand.shape:
            count *= size
        labels = torch.arange(start, start + count, dtype=torch.int32).reshape(operand.shape)
        start += count
        original.append(labels)
        wide.append(_spread(labels, operand.dims, widths))
    return original, wide


def _spread(labels: Tensor, dims: tuple[Type, ...], widths: Mapping[Var, int]) -> Tensor:
    """Puts the original's elements where the types say they sit in the wider tensor; everything else is 0."""
    order = list(dict.fromkeys(var for dim in dims for var in channels.variables(dim)))
    numbers = {var: number for number, var in enumerate(order)}
    within = tuple(widths.get(var, var.size) for var in order)
    for index, dim in enumerate(dims):
        layout = layout_of(dim, numbers)
        size = channels.size_at(dim, widths)
        if size != labels.shape[index]:
            wider = labels.new_zeros([*labels.shape[:index], size, *labels.shape[index + 1 :]])
            if isinstance(layout, Grow):  # the original's come first
                wider.narrow(index, 0, layout.size).copy_(labels)
                labels = wider
            else:
                labels = wider.index_copy(index, positions(layout, None, within), labels)
    return labels


def _call(func: Any, arguments: Any, labels: list[Tensor]) -> Any:
    """The operator with labels in the place of its tensors, in order."""
    remaining = iter(labels)
    args, kwargs = pytree.tree_map(
        lambda leaf: next(remaining) if isinstance(leaf, (Operand, Tensor)) else leaf, arguments, is_leaf=is_operand
    )
    return func(*args, **kwargs)


def _grows(dims: tuple[Type, ...], widths: Mapping[Var, int]) -> bool:
    return any(var in widths for dim in dims for var in channels.variables(dim))
