"""Replicate: new channels that are copies of old ones, so that a wider net computes what the old one did.

For ``resize``: writers of a width get copied channels, and readers share each old channel's weight out among its
copies. ([Net2Net]: Chen et al., Net2WiderNet, ICLR 2016, section 2.2, where copies have equal shares. Here the shares
are drawn: equal ones would have equal gradients, and copies would stay copies.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from netaug_fx.passes.layout import arrange, groups_in
from netaug_fx.passes.resize import Fill, Resized

_UNEVEN = 0.5  # shares of two copies are between 1/4 and 3/4


def replicated(seed: int = 0) -> Fill:
    """Fills the tensors of a wider net; the function stays the same where no statistic spans channels.

    Args:
        seed: Of the choice of what is copied, and of the shares.
    """

    def fill(resized: Resized) -> Tensor:
        chosen = [
            _copied(old, new, seed + number)
            for number, (old, new) in enumerate(zip(resized.before, resized.after, strict=True))
        ]
        generator = torch.Generator().manual_seed(seed + resized.old.numel())
        new = resized.old
        for dim, places in places_of(resized, chosen):
            new = new.index_select(dim, places.to(new.device))
            if dim in resized.contracted:
                shares = _shares(places, generator)
                new = new * shares.to(new).reshape([-1 if d == dim else 1 for d in range(new.dim())])
        return new

    return fill


def places_of(resized: Resized, chosen: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """For each dimension that grows, the old position that stands at each new one.

    Args:
        resized: A tensor that takes another shape.
        chosen: Of each group, by number, the old channel at each new place.
    """
    for dim, layout in enumerate(resized.layouts):
        if groups_in(layout):
            yield dim, arrange(layout, resized.before, lambda grow: chosen[grow.group])


def _copied(old: int, new: int, seed: int) -> Tensor:
    """Which old channel stands at each new place: all old ones first, then others at random."""
    order = torch.randperm(old, generator=torch.Generator().manual_seed(seed))
    repeats = -(-max(new - old, 0) // old) if old else 0
    return torch.cat([torch.arange(min(old, new)), order.repeat(repeats)[: max(new - old, 0)]])


def _shares(places: Tensor, generator: torch.Generator) -> Tensor:
    """For each new position along a dimension, its part of the old position's weight; parts add up to one."""
    weights = 1 + _UNEVEN * (2 * torch.rand(len(places), generator=generator, dtype=torch.float64) - 1)
    total = torch.zeros(int(places.max()) + 1, dtype=torch.float64).index_add_(0, places, weights)
    return weights / total[places]
