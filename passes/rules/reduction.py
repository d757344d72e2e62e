"""Operators that look at a whole dimension at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from netaug_fx.passes.channels import Fixed
from netaug_fx.passes.context import Context, Dims
from netaug_fx.passes.rules.elementwise import broadcast
from netaug_fx.passes.rules.registry import rule


def _reduced(a: Any, rank: int) -> list[int]:
    dim = getattr(a, "dim", None)
    if dim is None or dim == []:
        return list(range(rank))
    return sorted({d % rank for d in ([dim] if isinstance(dim, int) else dim)}) if rank else []


def _drop(a: Any, dims: Dims, reduced: list[int]) -> Dims:
    if getattr(a, "keepdim", False):
        return [Fixed(1) if index in reduced else dim for index, dim in enumerate(dims)]
    return [dim for index, dim in enumerate(dims) if index not in reduced]


@rule("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
def statistic(ctx: Context, a: Any) -> Dims | list[Dims]:
    """Reduced dimensions vanish; a statistic across channels is what hand-written norms take, so channels may grow."""
    dims = ctx.dims(a.input if hasattr(a, "input") else a.x)
    reduced = _reduced(a, len(dims))
    ctx.mixes(dims[index] for index in reduced)
    result = _drop(a, dims, reduced)
    return result if isinstance(a.out, Tensor) else [result] * len(a.out)


@rule(
    "sum", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all", "logsumexp", "median", "aminmax",
    "nansum", "count_nonzero", "mode", "nanmedian", "kthvalue",
)  # fmt: skip
def reduction(ctx: Context, a: Any) -> Dims | list[Dims]:
    """Reduced dimensions vanish; new channels would change the result, so they stay as they are."""
    dims = ctx.dims(a.input)
    if isinstance(getattr(a, "other", None), Tensor):
        return _binary(ctx, a)
    reduced = _reduced(a, len(dims))
    weights_alone = ctx.is_weight(a.input)
    for index in reduced:
        if weights_alone:
            ctx.mixes([dims[index]])
        else:
            ctx.pin(dims[index], "a reduction runs over it: new channels would change the target's values")
    result = _drop(a, dims, reduced)
    return result if isinstance(a.out, Tensor) else [result] * len(a.out)


def _binary(ctx: Context, a: Any) -> Dims:
    """``max(x, y)`` of two tensors is elementwise."""
    return broadcast(ctx, [ctx.dims(a.input), ctx.dims(a.other)], a.out.shape)


@rule(
    "_softmax",
    "_log_softmax",
    "softmax",
    "log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "cummax",
    "cummin",
)
def along(ctx: Context, a: Any) -> Dims | list[Dims]:
    """Same shape, but every element depends on the whole dimension, which stays as it is."""
    dims = ctx.dims(a.input)
    if dims:
        ctx.pin(dims[a.dim % len(dims)], "each element depends on all along it: new channels would change the target")
    return dims if isinstance(a.out, Tensor) else [dims] * len(a.out)


@rule("sort", "argsort", "topk", "msort")
def ordering(ctx: Context, a: Any) -> Dims | list[Dims]:
    """Values decide the order along one dimension, which stays as it is."""
    dims = ctx.dims(a.input)
    outs = [a.out] if isinstance(a.out, Tensor) else list(a.out)
    if dims:
        dim = (a.dim if getattr(a, "dim", None) is not None else -1) % len(dims)
        ctx.pin(dims[dim], "values decide the order along it")
        dims[dim] = Fixed(int(outs[0].shape[dim]))
    return dims if isinstance(a.out, Tensor) else [dims] * len(outs)
