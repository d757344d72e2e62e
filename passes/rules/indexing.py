"""Elements taken by number: the numbered dimension stays as it is, the others are kept."""

from __future__ import annotations

from typing import Any

import torch

from netaug_fx.passes.channels import Fixed
from netaug_fx.passes.context import Context, Dims, Refusal
from netaug_fx.passes.rules.elementwise import broadcast
from netaug_fx.passes.rules.registry import rule

_NUMBERED = "single elements are taken out of it by number"


@rule("select")
def select(ctx: Context, a: Any) -> Dims:
    """One element of a dimension."""
    dims = ctx.dims(a.input)
    ctx.pin(dims.pop(a.dim), _NUMBERED)
    return dims


@rule("index_select")
def index_select(ctx: Context, a: Any) -> Dims:
    """Elements of one dimension, in the order of an index tensor."""
    dims = ctx.dims(a.input)
    ctx.pin(dims[a.dim], _NUMBERED)
    dims[a.dim] = (ctx.dims(a.index) or [dims[a.dim]])[0]
    return dims


@rule("index")
def index(ctx: Context, a: Any) -> Dims:
    """Advanced indexing: index tensors are broadcast, and stand where the numbered dimensions stood."""
    dims = ctx.dims(a.input)
    numbered = [position for position, indices in enumerate(a.indices) if indices is not None]
    tensors = [a.indices[position] for position in numbered]
    for position in numbered:
        ctx.pin(dims[position], _NUMBERED)
    if any(t.dtype in (torch.bool, torch.uint8) for t in tensors):
        raise Refusal("it is indexed with a mask")
    rank = max(t.dim() for t in tensors)
    adjacent = numbered == list(range(numbered[0], numbered[-1] + 1))
    place = numbered[0] if adjacent else 0
    kept = [dim for position, dim in enumerate(dims) if position not in numbered]
    found = broadcast(ctx, [ctx.dims(t) for t in tensors], a.out.shape[place : place + rank])
    return [*kept[:place], *found, *kept[place:]]


@rule("embedding")
def embedding(ctx: Context, a: Any) -> Dims:
    """Rows of a table; the number of rows stays as it is."""
    rows, width = ctx.dims(a.weight)
    ctx.pin(rows, "it is the number of rows of a lookup table")
    if ctx.is_weight(a.weight):
        ctx.produces(width)
    return [*ctx.dims(a.indices), width]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(ctx: Context, a: Any) -> list[Dims]:
    """Sums or means of rows of a table; the number of rows stays as it is."""
    rows, width = ctx.dims(a.weight)
    ctx.pin(rows, "it is the number of rows of a lookup table")
    if ctx.is_weight(a.weight):
        ctx.produces(width)
    bags = Fixed(int(a.out[0].shape[0]), ctx.reason("it is the number of bags"))
    counts: list[Dims] = [[Fixed(int(size)) for size in tensor.shape] for tensor in a.out[1:]]
    return [[bags, width], *counts]


@rule("index_put", "_index_put_impl")
def index_put(ctx: Context, a: Any) -> Dims:
    """One value where a mask of the same shape is set is elementwise; other writes by number pin."""
    dims = ctx.dims(a.input)
    mask = a.indices[0]
    is_mask = len(a.indices) == 1 and mask is not None and mask.dtype == torch.bool
    if not is_mask or mask.dim() != len(dims) or a.values.numel() != 1:
        raise Refusal("elements are written into it by number")
    return broadcast(ctx, [dims, ctx.dims(mask)], a.input.shape)


@rule("gather")
def gather(ctx: Context, a: Any) -> Dims:
    """Elements by number along one dimension, from equal positions of the others."""
    dims, indices = ctx.dims(a.input), ctx.dims(a.index)
    ctx.pin(dims[a.dim], _NUMBERED)
    for position, (x, y) in enumerate(zip(dims, indices, strict=True)):
        if position == a.dim % len(dims):
            continue
        if x.size == y.size:
            ctx.unify(x, y)
        else:
            ctx.pin(x, _NUMBERED)
    return indices
