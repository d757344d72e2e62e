"""Modules of torch.nn whose Python ties widths that their operators do not tie."""

from __future__ import annotations

from typing import Any

from torch import nn

from netaug_fx.passes.channels import Fixed, Product
from netaug_fx.passes.context import Context, as_var
from netaug_fx.passes.rules.registry import module_rule


@module_rule(nn.MultiheadAttention)
def multihead_attention(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Embedding, heads x head width and output are one width, and the head width stays: embed_dim // num_heads."""
    heads = as_var(module.num_heads)
    embed = Product((heads, Fixed(module.head_dim, ctx.reason("it is the width of an attention head"))))
    query = args[0] if args else kwargs["query"]
    ctx.unify(ctx.dims(query)[-1], embed)
    if module.in_proj_weight is not None:
        ctx.unify(ctx.dims(module.in_proj_weight)[0], Product((Fixed(3), embed)))
    else:
        for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
            ctx.unify(ctx.dims(weight)[0], embed)
    ctx.unify(ctx.dims(module.out_proj.weight)[0], embed)
    ctx.note("num_heads", heads)
    ctx.note("embed_dim", embed)


@module_rule(nn.RMSNorm)
def rms_norm(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    """The normalised shape is that of the last dimensions."""
    dims = ctx.dims(output)[-len(module.normalized_shape) :]
    for index, dim in enumerate(dims):
        ctx.note(f"normalized_shape.{index}", dim)


@module_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> None:
    """The number of features is compared with the input's channels."""
    data = args[0] if args else kwargs["input"]
    rank = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
    batched = next((data.dim() == r for cls, r in rank.items() if isinstance(module, cls)), True)
    ctx.note("num_features", ctx.dims(data)[1 if batched else 0])
