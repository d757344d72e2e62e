"""Assembly: a tensor at some width, made of the original and the extra blocks beside it; and taken apart again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netaug_fx.passes.layout import Layout, Selection, Widths, select, storage_order

PARAMETER, BUFFER, STATISTIC, MUTATED, SHARED = "parameter", "buffer", "statistic", "mutated", "shared"


@dataclass(frozen=True)
class ElasticTensor:
    """A parameter or buffer that follows the active widths.

    ``extras[k]`` names the block that holds what dimension ``dims[k]`` gains: of the original's size on earlier elastic
    dimensions, of the widest size on later ones. ``contracted`` lists those of ``dims`` that the forward sums over:
    their
    blocks hold the extra-to-target weights. What forwards write into is, by ``kind``, the target's own (a norm's
    ``STATISTIC``, other ``MUTATED`` buffers), or ``SHARED`` by the target and the dense net around it.
    """

    name: str
    full_name: str
    kind: str
    layouts: tuple[Layout, ...]
    dims: tuple[int, ...]
    extras: tuple[str, ...]
    contracted: tuple[int, ...]


def selections(tensor: ElasticTensor, widths: Widths, widest: Widths, device: torch.device) -> dict[int, Selection]:
    """What of each of a tensor's ``dims`` is active at ``widths``; index tensors are on ``device``."""
    return {dim: select(tensor.layouts[dim], widths, widest, device) for dim in tensor.dims}


def assemble(base: Tensor, extras: list[Tensor], tensor: ElasticTensor, selected: Mapping[int, Selection]) -> Tensor:
    """The tensor at some widths, made of the original and the active part of its extra blocks.

    Every block takes part, with a slice of no elements where nothing of it is active, so that all parameters have a
    gradient after every augmented pass. The result has the memory format of the original.
    """
    result = base
    for position in range(len(tensor.dims) - 1, -1, -1):
        dim = tensor.dims[position]
        block = _take(extras[position], dim, selected[dim].extras, selected[dim].count)
        for later in tensor.dims[position + 1 :]:
            block = _take(block, later, selected[later].stored, base.shape[later] + selected[later].count)
        result = torch.cat([result, block], dim)
    for dim in tensor.dims:
        order = selected[dim].order
        if order is not None:
            result = result.index_select(dim, order.to(result.device))
    return in_format_of(base, result)


def _take(block: Tensor, dim: int, chosen: Tensor | None, count: int) -> Tensor:
    if chosen is None:
        return block.narrow(dim, 0, count)
    return block.index_select(dim, chosen.to(block.device))


def in_format_of(base: Tensor, result: Tensor) -> Tensor:
    """``result`` with its dimensions in the order in memory that ``base`` has: as usual, or channels last.

    Convolutions choose their kernels, and the order of their output, by the strides of their weight, those of
    dimensions of one element included, which tell the two orders apart where the elements lie alike.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(base.dim())
    if last is None or not _has_channels_last(base):
        return result
    return result.to(memory_format=last)


def _has_channels_last(tensor: Tensor) -> bool:
    n, c, *space = tensor.shape
    strides = tensor.stride()
    return strides != _row_major(tensor.shape) and (strides[0], *strides[2:], strides[1]) == _row_major((n, *space, c))


def _row_major(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


def disassemble(
    full: Tensor, base_shape: Sequence[int], tensor: ElasticTensor, widest: Widths
) -> tuple[Tensor, list[Tensor]]:
    """The inverse of ``assemble`` at the widest: the original's part and the extra blocks, as views or copies of
    ``full``."""
    for dim in tensor.dims:
        full = full.index_select(dim, storage_order(tensor.layouts[dim], widest).to(full.device))
    blocks = []
    for dim in tensor.dims:
        blocks.append(full.narrow(dim, base_shape[dim], full.shape[dim] - base_shape[dim]))
        full = full.narrow(dim, 0, base_shape[dim])
    return full, blocks
