"""Normalisation: affine parameters and running statistics have the width of what they normalise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from netaug_fx.passes.channels import Fixed, Product, Type
from netaug_fx.passes.context import Context, Dims, as_var
from netaug_fx.passes.rules.registry import rule


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update",
    "miopen_batch_norm", "_batch_norm_with_update_functional",
)  # fmt: skip
def batch_norm(ctx: Context, a: Any) -> list[Dims]:
    """Each channel by itself: affine parameters and statistics are of the channels' width.

    Weight standardisation runs weights through it, whose fan-in then stands where activations have batch and space.
    """
    dims = ctx.dims(a.input)
    width = dims[1]
    ctx.mixes([dims[0], *dims[2:]])
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor: Tensor | None = getattr(a, name, None)
        if tensor is not None:
            ctx.unify(width, ctx.dims(tensor)[0])
            if name.startswith("running"):
                ctx.marks_statistics(tensor)
    return [dims, *([width if size == width.size else Fixed(int(size)) for size in t.shape] for t in a.out[1:])]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(ctx: Context, a: Any) -> Dims | list[Dims]:
    """Statistics across the last dimensions: extra channels take part in them."""
    dims = ctx.dims(a.input)
    count = len(a.normalized_shape)
    for name in ("weight", "bias"):
        tensor: Tensor | None = getattr(a, name, None)
        if tensor is not None:
            for x, w in zip(dims[-count:], ctx.dims(tensor), strict=True):
                ctx.unify(x, w)
    ctx.mixes(dims[-count:])
    for index in range(count):
        ctx.note(f"normalized_shape.{index}", dims[len(dims) - count + index])
    if isinstance(a.out, Tensor):
        return dims
    kept: Dims = [*dims[:-count], *([Fixed(1)] * count)]
    return [dims, *([kept] * (len(a.out) - 1))]


@rule("native_group_norm")
def group_norm(ctx: Context, a: Any) -> list[Dims]:
    """Statistics within each group: groups are added, of the size they have; a single group spans all channels."""
    dims = ctx.dims(a.input)
    width: Type = dims[1]
    groups: Type = Fixed(1)
    if a.group > 1:
        groups = as_var(a.group)
        per_group = Fixed(width.size // a.group, ctx.reason("it is the number of channels per normalisation group"))
        ctx.unify(width, Product((groups, per_group)))
        ctx.note("num_groups", groups)
    else:
        ctx.mixes([width])
    for tensor in (a.weight, a.bias):
        if tensor is not None:
            ctx.unify(width, ctx.dims(tensor)[0])
    return [dims, [dims[0], groups], [dims[0], groups]]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(ctx: Context, a: Any) -> Dims | list[Dims]:
    """Direction times magnitude; the norm of the direction spans all dimensions but one."""
    v, g = ctx.dims(a.v), ctx.dims(a.g)
    ctx.mixes(x for x, y in zip(v, g, strict=True) if y.size == 1)
    for x, y in zip(v, g, strict=True):
        if x.size == y.size:
            ctx.unify(x, y)
    return v if isinstance(a.out, Tensor) else [v, g]
