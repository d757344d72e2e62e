"""Products summed over a dimension: matrix products and convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed, Product, Type
from netaug_fx.passes.context import Context, Dims, as_var, space
from netaug_fx.passes.rules.elementwise import broadcast
from netaug_fx.passes.rules.registry import rule

_TWO_ACTIVATIONS = "two activations are contracted over it: new channels would change the target's values"


def contract(ctx: Context, a: Tensor, a_dim: Type, b: Tensor, b_dim: Type) -> None:
    """Contracted dimensions are one width; between two activations it must stay as it is."""
    ctx.unify(a_dim, b_dim)
    if ctx.is_weight(a):
        ctx.consumes(a_dim)
    elif ctx.is_weight(b):
        ctx.consumes(b_dim)
    else:
        ctx.pin(a_dim, _TWO_ACTIVATIONS)


def _kept(ctx: Context, tensor: Tensor, dim: Type, other: Tensor) -> Type:
    """A dimension that is not summed over; of a weight applied to an activation, it writes channels."""
    if ctx.is_weight(tensor) and not ctx.is_weight(other):
        ctx.produces(dim)
    return dim


@rule("mm")
def mm(ctx: Context, a: Any) -> Dims:
    """(m, k) @ (k, n) -> (m, n)."""
    (m, ka), (kb, n) = ctx.dims(a.input), ctx.dims(a.mat2)
    contract(ctx, a.input, ka, a.mat2, kb)
    return [_kept(ctx, a.input, m, a.mat2), _kept(ctx, a.mat2, n, a.input)]


@rule("addmm")
def addmm(ctx: Context, a: Any) -> Dims:
    """bias + (m, k) @ (k, n) -> (m, n)."""
    (m, ka), (kb, n) = ctx.dims(a.mat1), ctx.dims(a.mat2)
    contract(ctx, a.mat1, ka, a.mat2, kb)
    result = [_kept(ctx, a.mat1, m, a.mat2), _kept(ctx, a.mat2, n, a.mat1)]
    return broadcast(ctx, [result, ctx.dims(a.input)], a.out.shape)


@rule("bmm")
def bmm(ctx: Context, a: Any) -> Dims:
    """(b, m, k) @ (b, k, n) -> (b, m, n)."""
    return _batched(ctx, a.input, a.mat2)


@rule("baddbmm")
def baddbmm(ctx: Context, a: Any) -> Dims:
    """bias + (b, m, k) @ (b, k, n) -> (b, m, n)."""
    return broadcast(ctx, [_batched(ctx, a.batch1, a.batch2), ctx.dims(a.input)], a.out.shape)


def _batched(ctx: Context, left: Tensor, right: Tensor) -> Dims:
    (batch, m, ka), (other, kb, n) = ctx.dims(left), ctx.dims(right)
    ctx.unify(batch, other)
    contract(ctx, left, ka, right, kb)
    if not ctx.is_weight(left) and not ctx.is_weight(right):
        ctx.heads.append(batch)
    return [batch, _kept(ctx, left, m, right), _kept(ctx, right, n, left)]


@rule("mv", "addmv")
def mv(ctx: Context, a: Any) -> Dims:
    """(m, k) @ (k) -> (m)."""
    matrix = a.mat if hasattr(a, "mat") else a.input
    m, k = ctx.dims(matrix)
    contract(ctx, matrix, k, a.vec, ctx.dims(a.vec)[0])
    if matrix is not a.input:
        return broadcast(ctx, [[_kept(ctx, matrix, m, a.vec)], ctx.dims(a.input)], a.out.shape)
    return [_kept(ctx, matrix, m, a.vec)]


@rule("dot", "vdot")
def dot(ctx: Context, a: Any) -> Dims:
    """(k) . (k) -> ()."""
    other = a.tensor if hasattr(a, "tensor") else a.other
    contract(ctx, a.input, ctx.dims(a.input)[0], other, ctx.dims(other)[0])
    return []


@rule("linear", "mkldnn_linear")
def linear(ctx: Context, a: Any) -> Dims:
    """(..., k) with weight (n, k) -> (..., n)."""
    *lead, k = ctx.dims(a.input)
    n, kw = ctx.dims(a.weight)
    contract(ctx, a.input, k, a.weight, kw)
    result = [*lead, _kept(ctx, a.weight, n, a.input)]
    if a.bias is not None:
        ctx.unify(n, ctx.dims(a.bias)[0])
    return result


@rule("convolution", "_convolution", "convolution_overrideable")
def convolution(ctx: Context, a: Any) -> Dims:
    """Input channels are contracted with the weight's; with groups both sides are groups x channels per group."""
    batch, in_channels, *spatial = ctx.dims(a.input)
    first, second, *kernel = ctx.dims(a.weight)
    for dim in spatial:
        ctx.pin(dim, "a convolution slides over it")
    for dim in kernel:
        ctx.pin(dim, "it is a kernel size")
    w_in, w_out = (first, second) if a.transposed else (second, first)
    if a.groups == 1:
        contract(ctx, a.input, in_channels, a.weight, w_in)
        out_channels = _kept(ctx, a.weight, w_out, a.input)
    else:
        out_channels = _grouped(ctx, a, in_channels, first, second)
    if a.bias is not None:
        ctx.unify(out_channels, ctx.dims(a.bias)[0])
    return [batch, out_channels, *space(a.out, 2)]


def _grouped(ctx: Context, a: Any, in_channels: Type, first: Type, second: Type) -> Type:
    """Groups are added, of the size they have: wider groups would mix new channels into the target's groups.

    The weight is (groups x out per group, in per group, ...), transposed (groups x in per group, out per group, ...).
    """
    groups = as_var(a.groups)
    per_in = in_channels.size // a.groups
    per_out = int(a.out.shape[1]) // a.groups
    ctx.pin(second, "it is the number of channels per group, and groups grow in number")
    grouped_in = Product((groups, Fixed(per_in, ctx.reason("it is the number of input channels per group"))))
    grouped_out = Product((groups, Fixed(per_out, ctx.reason("it is the number of output channels per group"))))
    ctx.unify(first, grouped_in if a.transposed else grouped_out)
    ctx.unify(in_channels, grouped_in)
    if not ctx.is_weight(a.weight):
        ctx.pin(in_channels, _TWO_ACTIVATIONS)
    elif per_in > 1 and channels.sources(first):
        ctx.produces(first)
    ctx.note("groups", groups)
    return grouped_out
