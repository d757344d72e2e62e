"""The algebra of channel types alone: whatever it solves holds at every width, element for element."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from netaug_fx.passes import channels
from netaug_fx.passes.channels import (
    Concat,
    Fixed,
    Mismatch,
    Product,
    Reason,
    Type,
    Var,
    factor,
    fresh,
    merged,
    pin,
    pin_reason,
    resolve,
    size_at,
    sources,
    split,
    unify,
    variables,
)
from netaug_fx.passes.layout import coordinates, layout_of, positions, shape
from tests.passes.drawn_types import SIZES, several_types, types

WHY = Reason("because")


def free(*found: Type) -> list[Var]:
    return list(dict.fromkeys(var for t in found for var in variables(t)))


def grown(draw: Any, variables_: list[Var]) -> dict[Var, int]:
    """Any widths from today's upwards."""
    return {var: var.size + draw(st.integers(0, 3)) for var in variables_}


def assert_same_elements(a: Type, b: Type, widths: dict[Var, int]) -> None:
    """Equal sizes, and the same element at every position, both of the original's and of the new ones."""
    assert size_at(a, widths) == size_at(b, widths)
    numbers = {var: number for number, var in enumerate(widths)}
    within = tuple(widths.values())
    first, second = layout_of(a, numbers), layout_of(b, numbers)
    assert shape([first], within) == shape([second], within) == (size_at(a, widths),)
    assert positions(first, None, within).tolist() == positions(second, None, within).tolist()
    for group in numbers.values():
        assert coordinates(first, within, group).tolist() == coordinates(second, within, group).tolist()


# -- the normal form -------------------------------------------------------------------------------------------------


@given(several_types(1))
def test_resolve_is_idempotent_and_keeps_the_size(drawn: list[Type]) -> None:
    once = resolve(drawn[0])
    assert resolve(once) == once
    assert once.size == drawn[0].size


@given(several_types(1), st.data())
def test_resolve_keeps_every_element_where_it_is(drawn: list[Type], data: st.DataObject) -> None:
    widths = grown(data.draw, free(drawn[0]))
    numbers = {var: number for number, var in enumerate(widths)}
    within = tuple(widths.values())

    def plain(t: Type) -> list[bool]:
        """Whether the original holds each element, straight from the meaning of the four forms."""
        if isinstance(t, Var):
            return [number < t.size for number in range(widths[t])]
        if isinstance(t, Concat):
            return [held for part in t.parts for held in plain(part)]
        if isinstance(t, Product):
            table = [True]
            for inner in t.factors:
                table = [outer and held for outer in table for held in plain(inner)]
            return table
        return [True] * t.size

    expected = [position for position, held in enumerate(plain(drawn[0])) if held]
    assert positions(layout_of(drawn[0], numbers), None, within).tolist() == expected


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        (Concat((Fixed(2), Concat((Fixed(3), Fixed(1))))), Fixed(6)),
        (Product((Fixed(2), Product((Fixed(3), Fixed(1))))), Fixed(6)),
        (Concat(()), Fixed(0)),
        (Product(()), Fixed(1)),
        (Product((Fixed(1), Fixed(1))), Fixed(1)),
        (Product((Fixed(3), Fixed(0))), Fixed(0)),
        (Concat((Fixed(0), Fixed(4))), Fixed(4)),
    ],
)
def test_constants_have_one_form(nested: Type, flat: Type) -> None:
    assert resolve(nested) == flat


def test_a_concatenation_as_outer_factor_is_distributed() -> None:
    a, b, c = Var(2), Var(3), Var(4)
    assert resolve(Product((Concat((a, b)), c))) == Concat((Product((a, c)), Product((b, c))))
    inner = Product((c, Concat((a, b))))
    assert resolve(inner) == inner, "as inner factor its elements alternate: nothing can be drawn out"


def test_long_chains_of_variables_are_followed_without_recursion() -> None:
    chain = [Var(4) for _ in range(20_000)]
    for left, right in itertools.pairwise(chain):
        unify(left, right)
    assert resolve(chain[0]) is resolve(chain[-1])


@pytest.mark.parametrize(("size", "kind"), [(0, Fixed), (1, Fixed), (2, Var)])
def test_dimensions_of_one_element_or_none_do_not_grow(size: int, kind: type) -> None:
    assert type(fresh(size)) is kind


# -- unify -----------------------------------------------------------------------------------------------------------


@given(several_types(2), st.data())
def test_unified_types_are_equal_element_for_element_at_every_width(drawn: list[Type], data: st.DataObject) -> None:
    a, b = drawn
    try:
        unify(a, b)
    except Mismatch:
        assume(False)
    assert_same_elements(a, b, grown(data.draw, free(a, b)))


@given(several_types(2))
def test_unify_gives_the_same_freedom_in_either_order(drawn: list[Type]) -> None:
    def outcome(swapped: bool) -> tuple[bool, list[int]]:
        known: dict[Var, Var] = {}
        a, b = (twin(t, known) for t in drawn)
        try:
            unify(*((b, a) if swapped else (a, b)))
        except Mismatch:
            return False, []
        return True, sorted(var.size for var in free(a, b))

    assert outcome(False) == outcome(True)


def twin(t: Type, known: dict[Var, Var]) -> Type:
    """A copy with variables of its own."""
    if isinstance(t, Var):
        return known.setdefault(t, Var(t.size))
    if isinstance(t, Concat):
        return Concat(tuple(twin(part, known) for part in t.parts))
    if isinstance(t, Product):
        return Product(tuple(twin(inner, known) for inner in t.factors))
    return t


@given(several_types(3), st.data())
def test_equality_is_passed_on(drawn: list[Type], data: st.DataObject) -> None:
    a, b, c = drawn
    try:
        unify(a, b)
        unify(b, c)
    except Mismatch:
        assume(False)
    assert_same_elements(a, c, grown(data.draw, free(a, b, c)))


@given(several_types(2))
def test_unifying_again_changes_nothing(drawn: list[Type]) -> None:
    a, b = drawn
    try:
        unify(a, b)
    except Mismatch:
        assume(False)
    before = free(a, b)
    unify(a, b)
    unify(b, a)
    assert free(a, b) == before


def test_a_fixed_side_pins_the_other_and_passes_on_its_reason() -> None:
    a, b = Var(2), Var(3)
    unify(Concat((a, b)), Fixed(5, WHY))
    assert resolve(a) == Fixed(2, WHY)
    assert resolve(b) == Fixed(3, WHY)


def test_what_is_pinned_on_the_way_gets_the_reason_given() -> None:
    a = Var(4)
    unify(Fixed(4), a, WHY)
    assert pin_reason(a) == WHY


def test_two_concatenations_are_refined_to_common_boundaries() -> None:
    a, b, c, d = Var(4), Var(6), Var(3), Var(7)
    unify(Concat((a, b)), Concat((c, d)))
    assert [part.size for part in (resolve(a), resolve(b), resolve(c), resolve(d))] == [4, 6, 3, 7]
    assert [var.size for var in variables(Concat((a, b)))] == [3, 6], "the piece of one element stays"
    assert resolve(d) == resolve(Concat((*_parts(a)[1:], b)))


def _parts(t: Type) -> tuple[Type, ...]:
    t = resolve(t)
    return t.parts if isinstance(t, Concat) else (t,)


def test_a_concatenation_of_k_equal_parts_is_k_times_one() -> None:
    a, b, c, whole = Var(4), Var(4), Var(4), Var(4)
    unify(Concat((a, b, c)), Product((Fixed(3), whole)))
    assert resolve(a) is resolve(b) is resolve(c) is resolve(whole)


def test_two_products_split_factors() -> None:
    outer, inner = Var(6), Var(4)
    few, rest = Var(2), Var(12)
    unify(Product((outer, inner)), Product((few, rest)))
    widths = {var: var.size + 1 for var in free(outer, rest)}
    assert_same_elements(Product((outer, inner)), Product((few, rest)), widths)
    assert [var.size for var in variables(outer)] == [2, 3]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (Fixed(3), Fixed(4), "3 elements against 4"),
        (Var(3), Var(4), "3 elements against 4"),
        (Product((Var(2), Var(3))), Product((Var(3), Var(2))), "share no boundary"),
        (Product((Var(4), Var(9))), Product((Var(6), Var(6))), "share no boundary"),
    ],
)
def test_no_solution_is_a_mismatch_in_words(a: Type, b: Type, words: str) -> None:
    with pytest.raises(Mismatch, match=words):
        unify(a, b)


# -- split, factor, pin ----------------------------------------------------------------------------------------------


@given(several_types(1), st.data())
def test_the_two_sides_of_a_cut_make_the_whole(drawn: list[Type], data: st.DataObject) -> None:
    whole = drawn[0]
    left, right = split(whole, data.draw(st.integers(0, whole.size)))
    assert_same_elements(whole, Concat((left, right)), grown(data.draw, free(whole, left, right)))


@given(several_types(1), st.data())
def test_cutting_twice_at_the_same_place_gives_the_same_sides(drawn: list[Type], data: st.DataObject) -> None:
    whole = drawn[0]
    at = data.draw(st.integers(0, whole.size))
    first = split(whole, at)
    assert tuple(map(resolve, split(whole, at))) == tuple(map(resolve, first))
    assert [side.size for side in first] == [at, whole.size - at]


@pytest.mark.parametrize("at", [-1, 7])
def test_a_cut_outside_is_a_mismatch(at: int) -> None:
    with pytest.raises(Mismatch, match=f"cannot cut 6 elements at {at}"):
        split(Var(6), at)


@given(st.sampled_from([size for size in SIZES if size > 1]), st.data())
def test_factors_of_any_type_multiply_to_it(size: int, data: st.DataObject) -> None:
    whole = data.draw(types(size, []))
    outer = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    try:
        factors = factor(whole, (outer, size // outer))
    except Mismatch:
        assume(False)
    assert [t.size for t in factors] == [outer, size // outer]
    assert_same_elements(whole, Product(tuple(factors)), grown(data.draw, free(whole, *factors)))


def test_a_reshape_there_and_back_is_the_same_width() -> None:
    whole = Var(24)
    a, b, c = factor(whole, (2, 3, 4))
    back = Var(24)
    unify(Product((a, b, c)), back)
    assert resolve(back) == resolve(whole)


def test_factors_of_another_size_are_a_mismatch() -> None:
    with pytest.raises(Mismatch, match="24 elements cannot be laid out as"):
        factor(Var(24), (5, 5))


@given(several_types(1))
def test_pin_leaves_nothing_free_and_says_why(drawn: list[Type]) -> None:
    t = drawn[0]
    was_free = bool(free(t))
    pin(t, WHY)
    assert resolve(t).size == t.size
    assert not free(t)
    if was_free:
        assert pin_reason(t) == WHY


def test_the_first_reason_is_kept() -> None:
    var = Var(3)
    pin(var, WHY)
    pin(var, Reason("another"))
    assert pin_reason(var) == WHY
    assert pin_reason(Concat((Var(2), var))) == WHY
    assert pin_reason(Var(2)) is None


@given(several_types(1), st.data())
def test_size_at_follows_the_structure(drawn: list[Type], data: st.DataObject) -> None:
    widths = grown(data.draw, free(drawn[0]))

    def count(t: Type) -> int:
        if isinstance(t, Concat):
            return sum(map(count, t.parts))
        return prod(map(count, t.factors)) if isinstance(t, Product) else widths.get(t, t.size)  # type: ignore[call-overload,no-any-return]

    assert size_at(drawn[0], widths) == count(drawn[0])
    assert size_at(drawn[0], {}) == drawn[0].size


# -- where a type comes from -----------------------------------------------------------------------------------------


def test_sources_survive_splits_factors_and_concatenations() -> None:
    weight, other = frozenset({("a.weight", 0)}), frozenset({("b.weight", 1)})
    left, right = split(fresh(6, weight), 2)
    assert sources(left) == sources(right) == weight
    assert all(sources(part) == weight for part in factor(fresh(6, weight), (2, 3)))
    assert sources(Concat((left, Var(3, other)))) == weight | other
    assert sources(Product((right, Var(3, other)))) == weight | other


def test_merging_adds_sources_and_stays_the_same_width() -> None:
    a, b = Var(4, frozenset({("a", 0)})), Var(4, frozenset({("b", 0)}))
    both = merged(a, b)
    assert sources(both) == sources(a) | sources(b)
    assert resolve(both) is a
    assert merged(a, Var(4)) is a, "nothing to add"
    assert merged(Fixed(1), b) == Fixed(1), "a broadcast is made from nothing"


def test_variables_are_listed_in_order_as_often_as_they_occur() -> None:
    a, b = Var(2), Var(3)
    assert list(variables(Concat((b, Product((a, b)))))) == [b, a, b]
    assert list(channels.variables(Fixed(9))) == []
