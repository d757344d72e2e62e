"""Operators that move elements: how they merge, cut and rearrange widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Concat, Product
from tests.passes.watching import factors, free, parts, tied, watch, why, x


def test_a_view_merges_row_by_row() -> None:
    seen = watch(lambda t: t.view(2, 12), x(2, 3, 4))
    assert tied(seen.result[1], Product(tuple(seen.operands[0][1:])))
    assert tied(seen.result[0], seen.operands[0][0])


def test_a_view_splits_into_new_factors() -> None:
    seen = watch(lambda t: t.view(2, 3, 4), x(2, 12))
    assert tied(Product(tuple(seen.result[1:])), seen.operands[0][1])
    assert all(map(free, seen.result))


def test_a_view_there_and_back_changes_nothing() -> None:
    seen = watch(lambda t: t.view(6, 5, 2).view(2, 3, 10).view(2, 3, 5, 2), x(2, 3, 5, 2))
    assert all(tied(old, new) for old, new in zip(seen.operands[0], seen.result, strict=True))


def test_dimensions_of_one_element_come_and_go_in_views() -> None:
    seen = watch(lambda t: t.view(1, 4, 1, 6), x(4, 1, 6, 1))
    assert tied(seen.result[1], seen.operands[0][0])
    assert tied(seen.result[3], seen.operands[0][2])


def test_flatten_after_a_transpose_has_the_channels_inside() -> None:
    seen = watch(lambda t: t.permute(0, 2, 3, 1).flatten(1), x(2, 4, 3, 5))
    _, c, h, width = seen.operands[0]
    assert tied(seen.result[1], Product((h, width, c)))


def test_elements_of_another_type_are_refused() -> None:
    seen = watch(lambda t: t.view(torch.int16), x(4, 6))
    assert "reinterpreted as another data type" in why(seen.operands[0][1])


SAME: list[tuple[str, Callable[[Tensor], Tensor], list[int]]] = [
    ("permute", lambda t: t.permute(2, 0, 3, 1), [2, 0, 3, 1]),
    ("transpose", lambda t: t.transpose(1, -1), [0, 3, 2, 1]),
    ("movedim", lambda t: t.movedim(1, -1), [0, 2, 3, 1]),
    ("t", lambda t: t[0, 0].t(), [3, 2]),
    ("contiguous", lambda t: t.transpose(0, 1).contiguous(), [1, 0, 2, 3]),
    ("unsqueeze and squeeze", lambda t: t.unsqueeze(-1).unsqueeze(0).squeeze(0).squeeze(-1), [0, 1, 2, 3]),
    ("squeeze of all", lambda t: t.unsqueeze(1).squeeze(), [0, 1, 2, 3]),
    ("whole slice", lambda t: t[:, 0:], [0, 1, 2, 3]),
    ("rolled by nothing", lambda t: torch.roll(t, 0, 1), [0, 1, 2, 3]),
    ("cut and joined", lambda t: torch.cat(t.split([1, 3], 1), 1), [0, 1, 2, 3]),
    ("in pieces and stacked", lambda t: t.view(4, 4, 5, 6).view(4, 4, 30).view(4, 4, 5, 6), [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("function", "order"), [case[1:] for case in SAME], ids=[case[0] for case in SAME])
def test_widths_only_change_places(function: Callable[[Tensor], Tensor], order: list[int]) -> None:
    seen = watch(function, x(4, 4, 5, 6))
    assert all(tied(seen.operands[0][old], new) for old, new in zip(order, seen.result, strict=True))


def test_squeeze_keeps_what_is_longer_than_one() -> None:
    seen = watch(lambda t: t.squeeze(1), x(2, 4, 5))
    assert tied(seen.result[1], seen.operands[0][1])


# -- joining ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, -3])
def test_cat_is_a_concatenation_and_ties_the_rest(dim: int) -> None:
    seen = watch(lambda a, b: torch.cat([a, b], dim), x(2, 3, 5, 5), x(2, 4, 5, 5))
    a, b = seen.operands
    assert tied(seen.result[1], Concat((a[1], b[1])))
    assert all(tied(a[d], b[d], seen.result[d]) for d in (0, 2, 3))
    assert not tied(a[1], b[1])


def test_a_tensor_joined_with_itself_stays_one_width() -> None:
    seen = watch(lambda a: torch.cat([a, a], 1), x(2, 3))
    assert list(channels.variables(seen.result[1])) == [seen.operands[0][1]] * 2


def test_legacy_empty_tensors_join_nothing() -> None:
    seen = watch(lambda a: torch.cat([torch.empty(0), a], 1), x(2, 3, 4))
    assert tied(seen.result[1], seen.operands[0][1])


def test_stack_ties_everything_and_adds_a_constant() -> None:
    seen = watch(lambda a, b: torch.stack([a, b], -1), x(2, 3), x(2, 3))
    assert tied(seen.operands[0][1], seen.operands[1][1], seen.result[1])
    assert seen.result[2] == channels.Fixed(2)


def test_repeat_is_a_product_with_the_count_outside() -> None:
    seen = watch(lambda t: t.repeat(1, 3), x(2, 4))
    assert tied(seen.result[1], Product((channels.Fixed(3), seen.operands[0][1])))
    assert tied(seen.result[0], seen.operands[0][0])


def test_repeat_adds_leading_dimensions() -> None:
    seen = watch(lambda t: t.repeat(2, 1, 1), x(3, 4))
    assert [t.size for t in seen.result] == [2, 3, 4]
    assert tied(seen.result[2], seen.operands[0][1])


# -- cutting ---------------------------------------------------------------------------------------------------------


def test_equal_chunks_are_one_width() -> None:
    seen = watch(lambda t: t.chunk(3, 1), x(2, 12))
    a, b, c = (result[1] for result in seen.results)
    assert tied(a, b, c)
    assert free(a)
    assert parts(seen.operands[0][1]) == [4, 4, 4]


def test_unequal_chunks_are_widths_of_their_own() -> None:
    seen = watch(lambda t: t.chunk(2, 1), x(2, 7))
    a, b = (result[1] for result in seen.results)
    assert (a.size, b.size) == (4, 3)
    assert not tied(a, b)


def test_sections_are_widths_of_their_own_even_when_equal() -> None:
    seen = watch(lambda t: t.split([4, 4, 2], 1), x(2, 10))
    assert not tied(seen.results[0][1], seen.results[1][1])
    assert parts(seen.operands[0][1]) == [4, 4, 2]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (lambda t: t[:, :3], [3, 7]),
        (lambda t: t[:, 3:], [3, 7]),
        (lambda t: t[:, -4:], [6, 4]),
        (lambda t: t[:, :-4], [6, 4]),
        (lambda t: t[:, 2:5], [2, 3, 5]),
        (lambda t: t.narrow(1, 2, 5), [2, 5, 3]),
        (lambda t: t[..., 8:], [8, 2]),
    ],
)
def test_slices_cut_at_their_bounds(cut: Callable[[Tensor], Tensor], expected: list[int]) -> None:
    assert parts(watch(cut, x(2, 10)).operands[0][1]) == expected


def test_neighbouring_slices_share_their_boundary() -> None:
    seen = watch(lambda t: (t[:, :4], t[:, 4:]), x(2, 10))
    assert tied(seen.operands[0][1], Concat((seen.results[0][1], seen.results[1][1])))


def test_a_slice_of_one_channel_takes_it_out_for_good() -> None:
    seen = watch(lambda t: t[:, 3:4], x(2, 10))
    assert parts(seen.operands[0][1]) == [3, 1, 6]
    assert seen.result[1] == channels.Fixed(1)


# -- rearranging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "expected"), [(3, [3, 7]), (-3, [7, 3]), (13, [3, 7])])
def test_roll_keeps_the_boundary(shift: int, expected: list[int]) -> None:
    seen = watch(lambda t: torch.roll(t, shift, 1), x(2, 10))
    assert parts(seen.result[1]) == expected
    assert seen.notes["shifts.0"].size == expected[0]
    last, first = channels.split(seen.result[1], expected[0])
    assert tied(seen.operands[0][1], Concat((first, last)))


def test_roll_back_is_where_it_was() -> None:
    seen = watch(lambda t: torch.roll(torch.roll(t, 3, 1), -3, 1), x(2, 10))
    assert tied(seen.result[1], seen.operands[0][1])


def test_channel_shuffle_swaps_factors() -> None:
    seen = watch(lambda t: F.channel_shuffle(t, 2), x(2, 8, 4, 4))
    inner, groups = factors(seen.result[1])
    assert tied(seen.operands[0][1], Product((groups, inner)))
    assert free(inner)
    assert "number of shuffled groups" in why(groups)


def test_pixel_shuffle_turns_the_inner_factor_into_space() -> None:
    seen = watch(lambda t: F.pixel_shuffle(t, 2), x(2, 12, 3, 3))
    channel, square = factors(seen.operands[0][1])
    assert tied(channel, seen.result[1])
    assert square.size == 4
    assert "becomes space" in why(square)


def test_pixel_unshuffle_is_its_inverse() -> None:
    seen = watch(lambda t: F.pixel_shuffle(F.pixel_unshuffle(t, 2), 2), x(2, 3, 4, 4))
    assert tied(seen.result[1], seen.operands[0][1])
    assert free(seen.result[1])


def test_im2col_and_back() -> None:
    seen = watch(lambda t: F.fold(F.unfold(t, 2, stride=2), (4, 4), 2, stride=2), x(2, 3, 4, 4))
    assert tied(seen.result[1], seen.operands[0][1])
    assert free(seen.result[1])
    columns = watch(lambda t: F.unfold(t, 2), x(2, 3, 4, 4))
    assert [t.size for t in factors(columns.result[1])] == [3, 4]


PINS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("strided slice", lambda t: t[:, ::2], "a strided slice is taken of it"),
    ("flip", lambda t: t.flip(1), "its order is turned round"),
    ("unbind", lambda t: t.unbind(1), "single elements are taken out of it"),
    ("unfold", lambda t: t.unfold(1, 3, 1), "windows are taken along it"),
    ("tril", lambda t: t.tril(), "positions are compared"),
    ("diagonal", lambda t: t.diagonal(), "positions are compared"),
    ("roll of all", lambda t: t.roll(2), "rolled across all dimensions"),
    ("number", lambda t: t[:, 2], "taken out of it by number"),
    ("list of numbers", lambda t: t[:, [0, 2]], "taken out of it by number"),
    ("mask", lambda t: t[:, torch.tensor([True] * 3 + [False] * 3)], "by number"),
    ("index_select", lambda t: t.index_select(1, torch.tensor([0, 2])), "by number"),
    ("gather", lambda t: t.gather(1, torch.zeros(4, 2, dtype=torch.int64)), "by number"),
]


@pytest.mark.parametrize(("function", "words"), [case[1:] for case in PINS], ids=[case[0] for case in PINS])
def test_what_depends_on_positions_stays(function: Callable[[Tensor], Any], words: str) -> None:
    seen = watch(function, x(4, 6))
    assert words in why(seen.operands[0][1])


def test_the_other_dimensions_of_an_indexed_tensor_are_kept() -> None:
    seen = watch(lambda t: t[:, [0, 2, 1]], x(4, 6, 5))
    assert tied(seen.result[0], seen.operands[0][0])
    assert tied(seen.result[2], seen.operands[0][2])
    assert free(seen.result[2])
    apart = watch(lambda t: t[[0, 1], :, [1, 2]], x(4, 6, 5))
    assert tied(apart.result[1], apart.operands[0][1])


def test_an_embedding_writes_its_width_and_keeps_its_rows() -> None:
    table = torch.nn.Parameter(torch.rand(9, 6))
    seen = watch(lambda t, rows: F.embedding(rows, t), table, torch.zeros(2, 5, dtype=torch.int64))
    assert tied(seen.result[2], seen.operands[0][1])
    assert "rows of a lookup table" in why(seen.operands[0][0])
    assert seen.writes(0) == {1}
