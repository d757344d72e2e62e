"""Elementwise operators: operands are broadcast against each other, element for element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed, Type
from netaug_fx.passes.context import Context, Dims, Refusal
from netaug_fx.passes.rules.registry import RULES, rule, tensor_leaves


def broadcast(ctx: Context, operands: Sequence[Dims], shape: Sequence[int]) -> Dims:
    """Aligned at the last dimension; operands of the result's size are one width, operands of size 1 are repeated."""
    result: Dims = []
    for position, size in enumerate(shape):
        found: Type | None = None
        for dims in operands:
            index = position - (len(shape) - len(dims))
            if index < 0 or dims[index].size != size or size == 1:
                continue
            if found is None:
                found = dims[index]
            else:
                ctx.unify(found, dims[index])
                found = channels.merged(found, dims[index])
        result.append(Fixed(size) if found is None else found)
    return result


@rule(
    "_prelu_kernel", "hardswish", "rrelu_with_noise", "masked_fill", "where", "lerp", "clone",
    "detach", "alias",
    "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "bernoulli", "dropout", "fill", "zero",
    "normal", "uniform",
    "_reshape_alias_copy", "nan_to_num", "gelu", "celu", "threshold", "softplus", "real", "imag", "conj",
    "_conj", "resolve_conj", "resolve_neg", "view_as", "exponential", "random", "_fused_dropout", "masked_fill_",
    "fake_quantize_per_tensor_affine", "isfinite", "isclose", "_assert_async", "angle", "dequantize", "floor_divide",
)  # fmt: skip
def elementwise(ctx: Context, a: Any) -> Dims:
    """Each result element depends on the operands' elements at its own position."""
    operands = [ctx.dims(t) for t in tensor_leaves([value for name, value in vars(a).items() if name != "out"])]
    if not isinstance(a.out, Tensor):
        return []
    return broadcast(ctx, operands, a.out.shape)


RULES["elementwise"] = elementwise


@rule("native_dropout")
def native_dropout(ctx: Context, a: Any) -> list[Dims]:
    """Result and mask have the input's dimensions."""
    return [ctx.dims(a.input), ctx.dims(a.input)]


@rule("copy")
def copy(ctx: Context, a: Any) -> Dims:
    """Source is broadcast into the destination."""
    target = ctx.dims(a.input)
    broadcast(ctx, [target, ctx.dims(a.src)], a.input.shape)
    return target


@rule("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
def like(ctx: Context, a: Any) -> Dims:
    """A new tensor with the dimensions of an old one."""
    return ctx.dims(a.input)


@rule("glu")
def glu(ctx: Context, a: Any) -> Dims:
    """One half gates the other: both halves are one width."""
    dims = ctx.dims(a.input)
    dim = a.dim % len(dims)
    first, second = channels.split(dims[dim], dims[dim].size // 2)
    ctx.unify(first, second)
    dims[dim] = first
    return dims


@rule("view_as_real", "view_as_complex")
def complex_view(ctx: Context, a: Any) -> Dims:
    """A last dimension of two is real and imaginary part."""
    dims = ctx.dims(a.input)
    if len(a.out.shape) > len(dims):
        return [*dims, Fixed(2)]
    ctx.pin(dims[-1], "real and imaginary part are a pair")
    return dims[:-1]


@rule("expand")
def expand(ctx: Context, a: Any) -> Dims:
    """Dimensions of size 1, and new leading ones, are repeated; all others stay."""
    return stretch(ctx.dims(a.input), a.out.shape)


def stretch(dims: Dims, shape: Sequence[int]) -> Dims:
    """``dims`` aligned at the end of ``shape``; repeated dimensions get a width of their own."""
    missing = len(shape) - len(dims)
    if missing < 0:
        raise Refusal("it is expanded to fewer dimensions")
    padded: list[Type | None] = [*([None] * missing), *dims]
    return [
        channels.fresh(size) if old is None or old.size != size else old
        for old, size in zip(padded, shape, strict=True)
    ]
