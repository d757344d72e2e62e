"""Layouts against the slow, obvious reference: lists of named elements; and tensors put together from their blocks."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netaug_fx.assembly import PARAMETER, ElasticTensor, assemble, disassemble, selections
from netaug_fx.passes.channels import Concat, Fixed, Product, Var, unify
from netaug_fx.passes.layout import (
    Grid,
    Grow,
    Layout,
    Parts,
    RecentSelections,
    Selection,
    Size,
    Widths,
    arrange,
    coordinates,
    groups_in,
    layout_of,
    positions,
    recent,
    select,
    shape,
    size,
    storage_order,
)
from tests.passes.drawn_types import coordinate, elements, layouts


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, Widths, Widths]:
    """A layout over three groups, with active widths and the widest."""
    groups = {number: draw(st.integers(2, 3)) for number in range(3)}
    layout = draw(layouts(groups))
    widest = tuple(base + draw(st.integers(0, 3)) for base in groups.values())
    return layout, tuple(draw(st.integers(groups[n], widest[n])) for n in range(3)), widest


@given(cases())
def test_sizes_and_groups(case: tuple[Layout, Widths, Widths]) -> None:
    layout, widths, _ = case
    assert size(layout, widths) == len(elements(layout, widths))
    assert size(layout, None) == len(elements(layout, None))
    assert groups_in(layout) == {n for n in range(3) if any(coordinate(e, n) >= 0 for e in elements(layout, widths))}
    assert shape([layout, Size(2)], widths) == (size(layout, widths), 2)


@given(cases())
def test_positions_find_each_element_by_its_name(case: tuple[Layout, Widths, Widths]) -> None:
    layout, widths, widest = case
    place = {name: position for position, name in enumerate(elements(layout, widest))}
    assert positions(layout, widths, widest).tolist() == [place[name] for name in elements(layout, widths)]
    assert positions(layout, None, widest).tolist() == [place[name] for name in elements(layout, None)]


@given(cases())
def test_coordinates_read_the_group_off_the_name(case: tuple[Layout, Widths, Widths]) -> None:
    layout, widths, _ = case
    for group in range(3):
        expected = [coordinate(name, group) for name in elements(layout, widths)]
        assert coordinates(layout, widths, group).tolist() == expected


@given(cases())
def test_selected_elements_stand_in_order(case: tuple[Layout, Widths, Widths]) -> None:
    layout, widths, widest = case
    base = elements(layout, None)
    extras = [name for name in elements(layout, widest) if name not in base]
    assert [elements(layout, widest)[i] for i in storage_order(layout, widest)] == [*base, *extras]
    chosen = select(layout, widths, widest)
    active = extras[: chosen.count] if chosen.extras is None else [extras[i] for i in chosen.extras]
    assert len(active) == chosen.count
    stored = [*base, *active]
    found = stored if chosen.order is None else [stored[i] for i in chosen.order]
    assert found == elements(layout, widths)


@given(cases(), st.randoms(use_true_random=False))
def test_arranging_takes_the_named_coordinates(case: tuple[Layout, Widths, Widths], random: object) -> None:
    layout, _, widest = case
    orders = {n: torch.randperm(widest[n], generator=torch.Generator().manual_seed(n)) for n in range(3)}

    def renamed(name: object) -> object:
        if not isinstance(name, tuple):
            return name
        if len(name) == 3 and name[0] == "group":
            return ("group", name[1], int(orders[name[1]][name[2]]))
        return tuple(map(renamed, name))

    place = {name: position for position, name in enumerate(elements(layout, widest))}
    found = arrange(layout, widest, lambda grow: orders[grow.group])
    assert found.tolist() == [place[renamed(name)] for name in elements(layout, widest)]  # type: ignore[index]


def test_selections_are_kept_up_to_so_many_elements() -> None:
    """Nearly every draw of widths is another one: all that a long training draws is not to be kept."""
    kept = RecentSelections(100)
    for width in range(1, 40):
        kept.keep(width, Selection(torch.arange(width), width, None, None))
        assert kept.elements <= 100
    assert kept.get(1) is None
    found = kept.get(39)
    assert found is not None
    assert found.count == 39
    assert kept.keep(39, found) is found
    assert kept.elements == 40 + 39
    kept.keep("too large", Selection(torch.arange(200), 200, None, None))
    assert (kept.elements, kept.get(39)) == (0, None)


def test_a_selection_depends_on_the_groups_of_its_layout_alone() -> None:
    layout = Grid((Grow(1, 2), Size(3)))
    recent.clear()
    first = select(layout, (5, 4, 6), (9, 6, 9))
    assert select(layout, (7, 4, 9), (9, 6, 9)) is first
    assert select(layout, (5, 3, 6), (9, 6, 9)) is not first
    assert select(layout, (5, 4, 6), (9, 8, 9)) is not first


# -- from types ------------------------------------------------------------------------------------------------------


def test_widths_that_do_not_grow_merge_with_constants() -> None:
    grows, stays = Var(4), Var(3)
    assert layout_of(grows, {grows: 0}) == Grow(0, 4)
    assert layout_of(Concat((Fixed(2), stays, grows)), {grows: 0}) == Parts((Size(5), Grow(0, 4)))
    assert layout_of(Product((Fixed(2), stays, grows)), {grows: 0}) == Grid((Size(6), Grow(0, 4)))
    assert layout_of(Product((Fixed(2), stays)), {}) == Size(6)
    assert layout_of(Concat((Fixed(2), stays)), {}) == Size(5)


def test_layouts_see_bindings_and_are_plain_data() -> None:
    outer, whole = Var(2), Var(6)
    unify(whole, Product((outer, Fixed(3))))
    layout = layout_of(whole, {outer: 1})
    assert layout == Grid((Grow(1, 2), Size(3)))
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert hash(pickle.loads(pickle.dumps(layout))) == hash(layout)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Grow(0, 2), [0, 1]),
        (Parts((Grow(0, 2), Grow(1, 2))), [0, 1, 4, 5]),  # growth is appended to each part
        (Grid((Size(2), Grow(0, 2))), [0, 1, 4, 5]),  # two rows of four
        (Grid((Grow(0, 2), Size(2))), [0, 1, 2, 3]),  # rows are appended
        (Grid((Grow(0, 2), Grow(1, 2))), [0, 1, 3, 4]),  # a 2 x 2 corner of 4 x 3
    ],
)
def test_where_the_original_sits_by_hand(layout: Layout, expected: list[int]) -> None:
    assert positions(layout, None, (4, 3)).tolist() == expected


def test_plain_widths_need_no_index() -> None:
    chosen = select(Grow(0, 4), (6,), (9,))
    assert (chosen.extras, chosen.count, chosen.order) == (None, 2, None)


# -- tensors ---------------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> tuple[ElasticTensor, Widths, Widths]:
    """One to three dimensions over three groups."""
    groups = {number: draw(st.integers(2, 3)) for number in range(3)}
    found = tuple(draw(layouts(groups, depth=1)) for _ in range(draw(st.integers(1, 3))))
    widest = tuple(base + draw(st.integers(0, 2)) for base in groups.values())
    widths = tuple(draw(st.integers(groups[n], widest[n])) for n in range(3))
    dims = tuple(d for d, layout in enumerate(found) if groups_in(layout))
    extras = tuple(f"weight_netaug{d}" for d in dims)
    return ElasticTensor("weight", "weight", PARAMETER, found, dims, extras, ()), widths, widest


def corner(full: torch.Tensor, found: tuple[Layout, ...], widths: Widths | None, widest: Widths) -> torch.Tensor:
    """The part of the widest tensor at ``widths``, by plain indexing of one dimension after the other."""
    for dim, layout in enumerate(found):
        full = full.index_select(dim, positions(layout, widths, widest))
    return full


@given(tensors())
def test_blocks_put_together_are_the_corner_of_the_widest_tensor(case: tuple[ElasticTensor, Widths, Widths]) -> None:
    tensor, widths, widest = case
    whole = shape(tensor.layouts, widest)
    full = torch.arange(math.prod(whole)).reshape(whole)
    base, blocks = disassemble(full, shape(tensor.layouts, None), tensor, widest)
    assert torch.equal(base, corner(full, tensor.layouts, None, widest))
    assert base.numel() + sum(block.numel() for block in blocks) == full.numel(), "each element is stored once"
    for active in (widths, widest):
        found = assemble(base, blocks, tensor, selections(tensor, active, widest, base.device))
        assert torch.equal(found, corner(full, tensor.layouts, active, widest))
