"""Layout: where the original's channels sit inside a wider tensor, read off the channel types.

A layout is a type in its final form: variables that grow are numbered (``Grow``), all others are ``Size``. It is plain,
hashable, picklable data, and is what the supernet works with at run time. Positions come from the structure alone: an
element of a layout has one coordinate per ``Grow`` it lies in, and belongs to the original if every coordinate does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from netaug_fx.passes.channels import Concat, Fixed, Type, Var, resolve


@dataclass(frozen=True)
class Size:
    """A number of elements that stays."""

    size: int


@dataclass(frozen=True)
class Grow:
    """The channels of group number ``group``, of which the original has ``size``."""

    group: int
    size: int


@dataclass(frozen=True)
class Parts:
    """Layouts one after the other."""

    parts: tuple[Layout, ...]


@dataclass(frozen=True)
class Grid:
    """All combinations of the factors' elements, outermost first."""

    factors: tuple[Layout, ...]


Layout = Size | Grow | Parts | Grid
Widths = tuple[int, ...]
"""The width of every group, by its number."""
_CPU = torch.device("cpu")


def layout_of(t: Type, numbers: Mapping[Var, int], base: Widths | None = None) -> Layout:
    """The layout of a type in which the variables in ``numbers`` grow and all others stay.

    Args:
        t: The type of one dimension.
        numbers: The number of each variable that grows.
        base: The width that each of these grows from; by default the variable's own size.
    """
    t = resolve(t)
    if isinstance(t, Fixed):
        return Size(t.size)
    if isinstance(t, Var):
        if t not in numbers:
            return Size(t.size)
        return Grow(numbers[t], t.size if base is None else base[numbers[t]])
    if isinstance(t, Concat):
        parts = _merged([layout_of(part, numbers, base) for part in t.parts], sum)
        return parts[0] if len(parts) == 1 else Parts(parts)
    factors = _merged([layout_of(factor, numbers, base) for factor in t.factors], prod)
    return factors[0] if len(factors) == 1 else Grid(factors)


def _merged(layouts: list[Layout], combine: Callable[[list[int]], int]) -> tuple[Layout, ...]:
    merged: list[Layout] = []
    for item in layouts:
        last = merged[-1] if merged else None
        if isinstance(item, Size) and isinstance(last, Size):
            merged[-1] = Size(combine([last.size, item.size]))
        else:
            merged.append(item)
    return tuple(merged)


def groups_in(layout: Layout) -> frozenset[int]:
    """Numbers of the groups that a layout depends on."""
    if isinstance(layout, Grow):
        return frozenset((layout.group,))
    if isinstance(layout, Size):
        return frozenset()
    inner = layout.parts if isinstance(layout, Parts) else layout.factors
    return frozenset[int]().union(*(groups_in(item) for item in inner))


def size(layout: Layout, widths: Widths | None) -> int:
    """Number of elements at the given widths; ``None`` stands for the original's."""
    if isinstance(layout, Size) or (isinstance(layout, Grow) and widths is None):
        return layout.size
    if isinstance(layout, Grow):
        assert widths is not None
        return widths[layout.group]
    if isinstance(layout, Parts):  # lists: torch.compile, which follows this, takes no generators here
        return sum([size(part, widths) for part in layout.parts])
    return prod([size(factor, widths) for factor in layout.factors])


def arrange(layout: Layout, within: Widths, order: Callable[[Grow], Tensor]) -> Tensor:
    """Positions, in a tensor of widths ``within``, of the elements that ``order`` names for each group.

    Args:
        layout: The layout of one dimension.
        within: Widths of the tensor that the positions count in.
        order: Coordinates to take along a group, in order, each below the group's width in ``within``.

    Returns:
        An int64 vector; element i is the position of the i-th element of the arrangement.
    """
    if isinstance(layout, Size):
        return torch.arange(layout.size)
    if isinstance(layout, Grow):
        return order(layout)
    if isinstance(layout, Parts):
        offset, pieces = 0, []
        for part in layout.parts:
            pieces.append(arrange(part, within, order) + offset)
            offset += size(part, within)
        return torch.cat(pieces)
    positions = torch.zeros(1, dtype=torch.int64)
    for item in layout.factors:
        inner = arrange(item, within, order)
        positions = (positions[:, None] * size(item, within) + inner).reshape(-1)
    return positions


def coordinates(layout: Layout, widths: Widths, group: int) -> Tensor:
    """For every position of a dimension at ``widths``, its coordinate in ``group``; -1 outside the group."""
    if isinstance(layout, Size):
        return torch.full((layout.size,), -1)
    if isinstance(layout, Grow):
        width = widths[layout.group]
        return torch.arange(width) if layout.group == group else torch.full((width,), -1)
    if isinstance(layout, Parts):
        return torch.cat([coordinates(part, widths, group) for part in layout.parts])
    result = torch.full((1,), -1)
    for item in layout.factors:
        result = torch.maximum(result[:, None], coordinates(item, widths, group)).reshape(-1)
    return result


def positions(layout: Layout, widths: Widths | None, within: Widths) -> Tensor:
    """Where the elements of a dimension at ``widths`` (None: the original's) sit in the same dimension at
    ``within``."""
    return arrange(layout, within, lambda grow: torch.arange(grow.size if widths is None else widths[grow.group]))


@dataclass(frozen=True)
class Selection:
    """Which stored elements of a dimension are active, and in what order they stand.

    Elements are stored as the original's first, then all extras in the order of the widest layout.

    Attributes:
        extras: Numbers of the active extras, ascending; None when they are the first ``count``.
        count: Number of active extras.
        stored: Numbers of the active elements among all stored ones; None when they are the first ones.
        order: For each position of the active dimension, the number of its element among the original's and the
            active extras; None when it is the identity.
    """

    extras: Tensor | None
    count: int
    stored: Tensor | None
    order: Tensor | None

    @property
    def elements(self) -> int:
        """Numbers that it holds, itself as one."""
        return 1 + sum(t.numel() for t in (self.extras, self.stored, self.order) if t is not None)


def select(layout: Layout, widths: Widths, widest: Widths, device: torch.device = _CPU) -> Selection:
    """The stored elements of a dimension that are active at ``widths``; index tensors are on ``device``."""
    if isinstance(layout, Grow):
        return Selection(None, widths[layout.group] - layout.size, None, None)
    groups = _numbers_of(layout)
    key = (layout, tuple(widths[group] for group in groups), tuple(widest[group] for group in groups), device)
    return recent.get(key) or recent.keep(key, _select(layout, widths, widest, device))


def _select(layout: Layout, widths: Widths, widest: Widths, device: torch.device) -> Selection:
    total = size(layout, widest)
    with torch.inference_mode(False):  # what is found once serves passes with gradients, too
        base = positions(layout, None, widest)
        stored = torch.full((total,), -1, dtype=torch.int64)
        stored[base] = torch.arange(len(base))
        is_extra = stored < 0
        stored[is_extra] = torch.arange(len(base), total)
        active = stored[positions(layout, widths, widest)]
        extras = active[active >= len(base)].sort().values
        compact = torch.full((total,), -1, dtype=torch.int64)
        compact[: len(base)] = torch.arange(len(base))
        compact[extras] = torch.arange(len(base), len(base) + len(extras))
        order = compact[active]
        numbers = extras - len(base)
        both = torch.cat([torch.arange(len(base)), extras])
        return Selection(
            None if _counts_up(numbers) else numbers.to(device),
            len(numbers),
            None if _counts_up(numbers) else both.to(device),
            None if _counts_up(order) else order.to(device),
        )


class RecentSelections:
    """The selections asked for last, as many as have ``most`` elements in all.

    Widths are drawn anew in every step, and of a dimension that many groups share nearly every draw is another: without
    a limit, a long training would keep them all.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.elements = 0
        self._found: OrderedDict[Hashable, Selection] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Selection | None:
        """What is kept under a key, which is then the last to go; None where nothing is."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def keep(self, key: Hashable, selection: Selection) -> Selection:
        """Keeps a selection, lets older ones go that are too many, and returns it."""
        with self._lock:
            self.elements += selection.elements - (self._found[key].elements if key in self._found else 0)
            self._found[key] = selection
            while self.elements > self.most:
                self.elements -= self._found.popitem(last=False)[1].elements
        return selection

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._found.clear()
            self.elements = 0


recent = RecentSelections(1 << 22)  # 32 MB


@lru_cache(maxsize=4096)
def _numbers_of(layout: Layout) -> tuple[int, ...]:
    return tuple(sorted(groups_in(layout)))


def _counts_up(numbers: Tensor) -> bool:
    """Whether they are 0, 1, 2, and so on."""
    return bool((numbers == torch.arange(len(numbers))).all())


def storage_order(layout: Layout, widest: Widths) -> Tensor:
    """For each stored element (the original's first, then the extras), its position in the widest layout."""
    base = positions(layout, None, widest)
    is_extra = torch.ones(size(layout, widest), dtype=torch.bool)
    is_extra[base] = False
    return torch.cat([base, is_extra.nonzero().flatten()])


def shape(layouts: Sequence[Layout], widths: Widths | None) -> tuple[int, ...]:
    """The shape of a tensor with one layout per dimension."""
    return tuple(size(layout, widths) for layout in layouts)
