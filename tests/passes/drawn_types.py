"""Hypothesis strategies for channel types and layouts, and the slow, obvious meaning that tests hold the code against.

A layout's meaning: the list of its elements, each named by the way that leads to it (which part, which coordinate in
which group). A wider layout has the original's elements under the same names, so every position is a search in a list.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from hypothesis import strategies as st

from netaug_fx.passes.channels import Concat, Fixed, Product, Type, Var
from netaug_fx.passes.layout import Grid, Grow, Layout, Parts, Size

SIZES = (1, 2, 3, 4, 6, 8, 12)


@st.composite
def types(draw: st.DrawFn, size: int, pool: list[Var], depth: int = 2) -> Type:
    """A type of ``size`` elements; variables of that size in ``pool`` may be used again, new ones are added to it."""
    forms = ["fixed", "new", *(["old"] * 2 if any(var.size == size for var in pool) else [])]
    if depth and size > 1:
        forms += ["concat", "product"] * 2
    form = draw(st.sampled_from(forms))
    if form == "old":
        return draw(st.sampled_from([var for var in pool if var.size == size]))
    if form == "concat":
        cut = draw(st.integers(1, size - 1))
        return Concat(tuple(draw(types(part, pool, depth - 1)) for part in (cut, size - cut)))
    if form == "product":
        outer = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        return Product(tuple(draw(types(factor, pool, depth - 1)) for factor in (outer, size // outer)))
    if form == "fixed" or size == 1:
        return Fixed(size)
    var = Var(size)
    pool.append(var)
    return var


@st.composite
def several_types(draw: st.DrawFn, count: int) -> list[Type]:
    """Types of one common size, which may share variables."""
    size, pool = draw(st.sampled_from(SIZES)), list[Var]()
    return [draw(types(size, pool)) for _ in range(count)]


@st.composite
def layouts(draw: st.DrawFn, groups: dict[int, int], depth: int = 2) -> Layout:
    """A layout over the given groups (number -> the original's size); one group may stand in several places."""
    form = draw(st.sampled_from(["size", "grow", "grow", *(["parts", "grid"] if depth else [])]))
    if form == "size":
        return Size(draw(st.integers(1, 3)))
    if form == "grow":
        number = draw(st.sampled_from(sorted(groups)))
        return Grow(number, groups[number])
    inner = tuple(draw(layouts(groups, depth - 1)) for _ in range(draw(st.integers(2, 3 if form == "parts" else 2))))
    return Parts(inner) if form == "parts" else Grid(inner)


def elements(layout: Layout, widths: tuple[int, ...] | None) -> list[Hashable]:
    """The names of a layout's elements in order, at the given widths (None: the original's)."""
    if isinstance(layout, Size):
        return [("fixed", number) for number in range(layout.size)]
    if isinstance(layout, Grow):
        width = layout.size if widths is None else widths[layout.group]
        return [("group", layout.group, number) for number in range(width)]
    if isinstance(layout, Parts):
        return [(k, name) for k, part in enumerate(layout.parts) for name in elements(part, widths)]
    return list(itertools.product(*(elements(factor, widths) for factor in layout.factors)))


def coordinate(name: Hashable, group: int) -> int:
    """The (largest) coordinate in ``group`` that occurs in an element's name, or -1."""
    if not isinstance(name, tuple):
        return -1
    if len(name) == 3 and name[0] == "group":
        return int(name[2]) if name[1] == group else -1
    return max((coordinate(inner, group) for inner in name), default=-1)
