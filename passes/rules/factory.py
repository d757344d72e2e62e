"""Tensors made in the forward: their sizes may follow a width, their values may not depend on it."""

from __future__ import annotations

from typing import Any

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed
from netaug_fx.passes.context import Context, Dims
from netaug_fx.passes.rules.registry import rule


@rule(
    "zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty",
    "empty_strided", "new_empty_strided",
)  # fmt: skip
def filled(ctx: Context, a: Any) -> Dims:
    """Every element alike (or drawn alike): any size will do, so each dimension is a width of its own."""
    return [channels.fresh(int(size)) for size in a.out.shape]


@rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "tril_indices", "triu_indices", "randint", "randperm")
def counted(ctx: Context, a: Any) -> Dims:
    """The values count positions, so the sizes stay."""
    reason = ctx.reason("its values count positions")
    return [Fixed(int(size), reason) for size in a.out.shape]


@rule(
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "is_same_size",
    "sym_size",
    "sym_stride",
    "_assert_tensor_metadata",
)
def to_python(ctx: Context, a: Any) -> None:
    """A Python number leaves the tensor world; where it is used, `check` sees whether it follows a width."""
    return
