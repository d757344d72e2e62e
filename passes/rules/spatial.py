"""Pooling, resampling and padding: leading dimensions are kept, trailing ones are space."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Concat, Fixed, Product
from netaug_fx.passes.context import Context, Dims, space
from netaug_fx.passes.rules.registry import rule

_SPATIAL_RANK = {
    1: """avg_pool1d max_pool1d max_pool1d_with_indices adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d
        _upsample_nearest_exact1d upsample_linear1d reflection_pad1d replication_pad1d""",
    2: """avg_pool2d max_pool2d max_pool2d_with_indices mkldnn_max_pool2d fractional_max_pool2d max_unpool2d
        adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d _upsample_nearest_exact2d
        upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d
        replication_pad2d""",
    3: """avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d
        upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d reflection_pad3d replication_pad3d""",
}


def _spatial_rule(rank: int) -> Any:
    def resample(ctx: Context, a: Any) -> Dims | list[Dims]:
        """Channels are treated one by one; the spatial dimensions stay as they are."""
        dims = ctx.dims(a.input)
        for dim in dims[-rank:]:
            ctx.pin(dim, "it is a spatial dimension of a pooling, resampling or padding operator")
        outs = [a.out] if isinstance(a.out, Tensor) else list(a.out)
        results = [[*dims[:-rank], *space(out, -rank)] for out in outs]
        return results[0] if isinstance(a.out, Tensor) else results

    return resample


for _rank, _ops in _SPATIAL_RANK.items():
    rule(*_ops.split())(_spatial_rule(_rank))


@rule("constant_pad_nd")
def constant_pad(ctx: Context, a: Any) -> Dims:
    """Padding stands before and after: fixed ++ old ++ fixed; cutting (a negative pad) pins."""
    dims = ctx.dims(a.input)
    for index in range(len(a.pad) // 2):
        before, after = a.pad[2 * index : 2 * index + 2]
        dim = len(dims) - 1 - index
        if before < 0 or after < 0:
            ctx.pin(dims[dim], "a negative padding cuts it")
            dims[dim] = Fixed(int(a.out.shape[dim]))
        elif before or after:
            reason = ctx.reason("it is padding")
            dims[dim] = Concat((Fixed(before, reason), dims[dim], Fixed(after, reason)))
    return dims


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(ctx: Context, a: Any) -> Dims:
    """Channels are kept; places to sample come from the grid."""
    dims = ctx.dims(a.input)
    for dim in [*dims[2:], *ctx.dims(a.grid)[1:]]:
        ctx.pin(dim, "it is a spatial dimension of a sampling operator")
    return [dims[0], dims[1], *space(a.out, 2)]


@rule("im2col")
def im2col(ctx: Context, a: Any) -> Dims:
    """(N, C, H, W) -> (N, C x kernel, L)."""
    dims = ctx.dims(a.input)
    for dim in dims[-2:]:
        ctx.pin(dim, "it is a spatial dimension of an unfolding operator")
    kernel = Fixed(int(a.out.shape[-2]) // dims[-3].size, ctx.reason("it is the kernel of an unfolding operator"))
    return [*dims[:-3], Product((dims[-3], kernel)), Fixed(int(a.out.shape[-1]))]


@rule("col2im")
def col2im(ctx: Context, a: Any) -> Dims:
    """(N, C x kernel, L) -> (N, C, H, W)."""
    *lead, rows, columns = ctx.dims(a.input)
    ctx.pin(columns, "it is a spatial dimension of a folding operator")
    width, kernel = channels.factor(rows, (int(a.out.shape[-3]), rows.size // int(a.out.shape[-3])))
    ctx.pin(kernel, "it is the kernel of a folding operator")
    return [*lead, width, *space(a.out, -2)]


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(ctx: Context, a: Any) -> Dims:
    """Each transformed dimension mixes all its elements and stays as it is; channels are treated one by one."""
    dims = ctx.dims(a.input)
    for dim in a.dim:
        ctx.pin(dims[dim], "a Fourier transform runs along it")
        dims[dim] = space(a.out, dim % len(dims))[0]
    return dims
