"""Operators that move elements: layouts change, and the types say how."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Concat, Fixed, Product, Type
from netaug_fx.passes.context import Context, Dims, Refusal, growing, space
from netaug_fx.passes.rules.registry import rule


def regroup(dims: Dims, shape: Sequence[int]) -> Dims:
    """A reshape: runs of dimensions whose sizes multiply to the same number are one product, laid out anew."""
    if prod(shape) == 0 or any(dim.size == 0 for dim in dims):
        return [Fixed(size) for size in shape]
    old = [dim for dim in dims if dim.size != 1]
    new = [index for index, size in enumerate(shape) if size != 1]
    result: Dims = [Fixed(1)] * len(shape)
    i = j = 0
    while i < len(old):
        sources, targets = [old[i]], [new[j]]
        have, want = old[i].size, shape[new[j]]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                sources.append(old[i])
                have *= old[i].size
                i += 1
            else:
                targets.append(new[j])
                want *= shape[new[j]]
                j += 1
        whole = sources[0] if len(sources) == 1 else Product(tuple(sources))
        parts = [whole] if len(targets) == 1 else channels.factor(whole, [shape[t] for t in targets])
        for target, part in zip(targets, parts, strict=True):
            result[target] = part
    return result


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(ctx: Context, a: Any) -> Dims:
    """Dimensions are merged and split in row-major order."""
    if not hasattr(a, "size"):  # view(dtype)
        if a.out.shape != a.input.shape:
            raise Refusal("its elements are reinterpreted as another data type")
        return ctx.dims(a.input)
    return regroup(ctx.dims(a.input), [int(size) for size in a.out.shape])


@rule("as_strided")
def as_strided(ctx: Context, a: Any) -> Dims:
    """Only torch's own use after global pooling, which gives (n, c, 1, 1) other strides, is known."""
    n, c, *space = a.size
    if list(space) != [1, 1] or list(a.stride) != [c, 1, c, c] or a.storage_offset:
        raise Refusal("its memory is read with strides of the user's own")
    dims = ctx.dims(a.input)
    if [dim.size for dim in dims] != [n, c, 1, 1]:
        raise Refusal("its memory is read with strides of the user's own")
    return dims


@rule("unsqueeze")
def unsqueeze(ctx: Context, a: Any) -> Dims:
    """A dimension of size 1 is put in."""
    dims = ctx.dims(a.input)
    dims.insert(a.dim % (len(dims) + 1), Fixed(1))
    return dims


@rule("squeeze")
def squeeze(ctx: Context, a: Any) -> Dims:
    """Dimensions of size 1 are taken out: the given ones, or all."""
    dims = ctx.dims(a.input)
    chosen = getattr(a, "dim", None)
    listed = range(len(dims)) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    dropped = {d % len(dims) for d in listed if len(dims)}
    return [dim for index, dim in enumerate(dims) if not (index in dropped and dim.size == 1)]


@rule("permute")
def permute(ctx: Context, a: Any) -> Dims:
    """Dimensions change places."""
    dims = ctx.dims(a.input)
    return [dims[d] for d in a.dims]


@rule("transpose")
def transpose(ctx: Context, a: Any) -> Dims:
    """Two dimensions change places."""
    dims = ctx.dims(a.input)
    if dims:
        dims[a.dim0], dims[a.dim1] = dims[a.dim1], dims[a.dim0]
    return dims


@rule("t", "numpy_T")
def transpose_matrix(ctx: Context, a: Any) -> Dims:
    """All dimensions in reverse order."""
    return ctx.dims(a.input)[::-1]


@rule("cat")
def cat(ctx: Context, a: Any) -> Dims:
    """One dimension is a concatenation, the others are equal."""
    operands = [ctx.dims(t) for t in a.tensors if tuple(t.shape) != (0,)]
    if not operands:
        return [Fixed(0)]
    result = list(operands[0])
    dim = a.dim % len(result)
    for dims in operands[1:]:
        for index, (x, y) in enumerate(zip(result, dims, strict=True)):
            if index != dim:
                ctx.unify(x, y)
    result[dim] = Concat(tuple(dims[dim] for dims in operands))
    return result


@rule("stack")
def stack(ctx: Context, a: Any) -> Dims:
    """Equal tensors along a new dimension."""
    first, *others = (ctx.dims(t) for t in a.tensors)
    for dims in others:
        for x, y in zip(first, dims, strict=True):
            ctx.unify(x, y)
    first.insert(a.dim % (len(first) + 1), Fixed(len(a.tensors)))
    return first


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(ctx: Context, a: Any) -> list[Dims]:
    """Cut at the boundaries; parts that are all of one size are one width, so that a chunk stays a chunk."""
    dims = ctx.dims(a.input)
    dim = a.dim % len(dims)
    parts: list[Type] = []
    rest: Type = dims[dim]
    for out in a.out:
        part, rest = channels.split(rest, int(out.shape[dim]))
        parts.append(part)
    by_count = not hasattr(a, "split_sizes") and not isinstance(getattr(a, "split_size", 0), (list, tuple))
    if by_count and len({part.size for part in parts}) == 1:
        for part in parts[1:]:
            ctx.unify(parts[0], part)
    return [[*dims[:dim], part, *dims[dim + 1 :]] for part in parts]


@rule("slice")
def slice_(ctx: Context, a: Any) -> Dims:
    """A contiguous part is cut out at its boundaries; a stride pins."""
    dims = ctx.dims(a.input)
    dim = a.dim % len(dims)
    size = dims[dim].size
    start, stop, _ = slice(a.start, a.end).indices(size)
    if a.step != 1:
        ctx.pin(dims[dim], "a strided slice is taken of it")
        dims[dim] = Fixed(int(a.out.shape[dim]))
    elif (start, stop) != (0, size):
        _before, rest = channels.split(dims[dim], start)
        dims[dim], _after = channels.split(rest, max(stop - start, 0))
    return dims


@rule("unbind")
def unbind(ctx: Context, a: Any) -> list[Dims]:
    """Slices along a dimension, which stays as it is."""
    dims = ctx.dims(a.input)
    dim = a.dim % len(dims)
    ctx.pin(dims[dim], "single elements are taken out of it")
    return [[*dims[:dim], *dims[dim + 1 :]]] * len(a.out)


@rule("roll")
def roll(ctx: Context, a: Any) -> Dims:
    """The last part comes first: the boundary is kept."""
    dims = ctx.dims(a.input)
    if not a.dims:
        raise Refusal("it is rolled across all dimensions")
    for index, (shift, dim) in enumerate(zip(a.shifts, a.dims, strict=True)):
        first, last = channels.split(dims[dim], dims[dim].size - shift % dims[dim].size)
        ctx.note(f"shifts.{index}", last)
        dims[dim] = Concat((last, first))
    return dims


@rule("flip")
def flip(ctx: Context, a: Any) -> Dims:
    """The order is turned round, so the dimension stays as it is."""
    dims = ctx.dims(a.input)
    for dim in a.dims:
        ctx.pin(dims[dim], "its order is turned round, and new channels are appended at the end")
    return dims


@rule("repeat")
def repeat(ctx: Context, a: Any) -> Dims:
    """The whole dimension again and again: repeats x old."""
    dims = ctx.dims(a.input)
    padded: Dims = [*([Fixed(1)] * (len(a.repeats) - len(dims))), *dims]
    return [dim if n == 1 else Product((Fixed(int(n)), dim)) for n, dim in zip(a.repeats, padded, strict=True)]


@rule("pixel_shuffle")
def pixel_shuffle(ctx: Context, a: Any) -> Dims:
    """(..., C x r x r, H, W) -> (..., C, H x r, W x r)."""
    *lead, width, _h, _w = ctx.dims(a.input)
    square = a.upscale_factor**2
    outer, inner = channels.factor(width, (width.size // square, square))
    ctx.pin(inner, "it becomes space in a pixel shuffle")
    return [*lead, outer, *space(a.out, -2)]


@rule("pixel_unshuffle")
def pixel_unshuffle(ctx: Context, a: Any) -> Dims:
    """(..., C, H x r, W x r) -> (..., C x r x r, H, W)."""
    *lead, width, h, w = ctx.dims(a.input)
    for dim in (h, w):
        ctx.pin(dim, "it is space in a pixel unshuffle")
    square = Fixed(a.downscale_factor**2, ctx.reason("it was space before a pixel unshuffle"))
    return [*lead, Product((width, square)), *space(a.out, -2)]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ctx: Context, a: Any) -> Dims:
    """groups x n becomes n x groups."""
    dims = ctx.dims(a.input)
    groups, inner = channels.factor(dims[1], (a.groups, dims[1].size // a.groups))
    ctx.pin(groups, "it is the number of shuffled groups")
    dims[1] = Product((inner, groups))
    return dims


@rule("unfold")
def unfold(ctx: Context, a: Any) -> Dims:
    """Windows along a dimension: their number stands in its place, their content comes last."""
    dims = ctx.dims(a.input)
    dim = a.dimension % len(dims)
    ctx.pin(dims[dim], "windows are taken along it")
    dims[dim] = Fixed(int(a.out.shape[dim]))
    return [*dims, Fixed(int(a.size))]


@rule("diagonal", "tril", "triu", "diag_embed")
def diagonals(ctx: Context, a: Any) -> Dims:
    """Positions of two dimensions are compared, so both stay as they are."""
    dims = ctx.dims(a.input)
    if any(growing(dim) for dim in dims[-2:]) or (isinstance(a.out, Tensor) and a.out.dim() != len(dims)):
        for dim in dims:
            ctx.pin(dim, "its positions are compared with those of another dimension")
    return dims if a.out.dim() == len(dims) else [Fixed(int(size)) for size in a.out.shape]
