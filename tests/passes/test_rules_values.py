"""Operators that compute values: elementwise, reductions, norms, pooling and padding, factories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed
from tests.passes.watching import factors, free, parts, tied, w, watch, why, x

# -- elementwise -----------------------------------------------------------------------------------------------------

BINARY: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
    ("add", lambda a, b: a + b),
    ("in place", lambda a, b: a.mul_(b)),
    ("addcmul", lambda a, b: torch.addcmul(a, a, b)),
    ("where", lambda a, b: torch.where(a > 0, a, b)),
    ("lerp", lambda a, b: torch.lerp(a, b, 0.5)),
    ("maximum", torch.maximum),
    ("max of two", torch.max),
    ("compare", lambda a, b: a <= b),
    ("masked_fill", lambda a, b: a.masked_fill(b > 0, 0.0)),
    ("copy_", lambda a, b: a.copy_(b)),
    ("prelu", lambda a, b: F.prelu(a, b[0, :, 0])),
]


@pytest.mark.parametrize("function", [case[1] for case in BINARY], ids=[case[0] for case in BINARY])
def test_operands_are_tied_element_for_element(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    seen = watch(function, x(2, 6, 5), x(2, 6, 5))
    assert tied(seen.operands[0][1], seen.operands[1][1], seen.result[1])
    assert free(seen.result[1])


@pytest.mark.parametrize("name", ["relu", "hardswish", "gelu", "silu", "softplus", "elu", "mish", "relu6"])
def test_activations_change_no_width(name: str) -> None:
    for inplace in ({}, {"inplace": True}) if name in ("relu", "hardswish", "silu", "elu") else ({},):
        seen = watch(lambda t, kwargs=inplace: getattr(F, name)(t, **kwargs), x(2, 6))
        assert tied(seen.result[1], seen.operands[0][1])
        assert free(seen.result[1])


def test_broadcasting_one_element_is_not_equality() -> None:
    seen = watch(torch.add, x(2, 6, 5), x(1, 6, 1))
    assert tied(seen.operands[0][1], seen.operands[1][1])
    assert free(seen.operands[0][2])
    grown = watch(torch.add, x(6, 1), x(1, 5))
    assert tied(grown.result[0], grown.operands[0][0])
    assert tied(grown.result[1], grown.operands[1][1])


def test_missing_leading_dimensions_are_aligned_at_the_end() -> None:
    seen = watch(torch.mul, x(2, 4, 6), x(6))
    assert tied(seen.operands[0][2], seen.operands[1][0])
    assert free(seen.operands[0][1])


def test_a_result_remembers_both_weights_it_was_made_from() -> None:
    seen = watch(lambda data, a, b: F.linear(data, a + b), x(3, 6), w(4, 6), w(4, 6))
    assert (seen.reads(1), seen.reads(2)) == ({1}, {1})
    assert (seen.writes(1), seen.writes(2)) == ({0}, {0})


def test_expanding_makes_a_width_of_its_own() -> None:
    seen = watch(lambda t: t.expand(3, 4, 6), x(4, 1))
    assert free(seen.result[2])
    assert not tied(seen.result[2], seen.operands[0][0])
    assert tied(seen.result[1], seen.operands[0][0])


def test_a_gate_ties_its_halves() -> None:
    seen = watch(lambda t: F.glu(t, 1), x(2, 8))
    first, second = channels.split(seen.operands[0][1], 4)
    assert tied(first, second, seen.result[1])
    assert free(seen.result[1])


def test_complex_pairs_stay_pairs() -> None:
    seen = watch(lambda t: torch.view_as_complex(t), x(3, 4, 2))
    assert "a pair" in why(seen.operands[0][2])
    assert tied(seen.result[1], seen.operands[0][1])
    back = watch(lambda t: torch.view_as_real(torch.view_as_complex(t)), x(3, 4, 2))
    assert tied(back.result[1], back.operands[0][1])


def test_dropout_keeps_widths() -> None:
    seen = watch(lambda t: F.dropout(t, 0.5, training=True), x(2, 6))
    assert tied(seen.result[1], seen.operands[0][1])


# -- reductions ------------------------------------------------------------------------------------------------------


def test_a_reduced_dimension_vanishes_or_becomes_one() -> None:
    seen = watch(lambda t: t.mean((2, 3)), x(2, 6, 5, 5))
    assert [tied(a, b) for a, b in zip(seen.result, seen.operands[0], strict=False)] == [True, True]
    kept = watch(lambda t: t.mean((-1, -2), keepdim=True), x(2, 6, 5, 5))
    assert kept.result[2:] == [Fixed(1), Fixed(1)]


@pytest.mark.parametrize("name", ["mean", "var", "std", "norm"])
def test_a_statistic_over_channels_mixes_but_does_not_pin(name: str) -> None:
    seen = watch(lambda t: getattr(t, name)(dim=1, keepdim=True), x(2, 6))
    assert free(seen.operands[0][1])
    (mixing,) = seen.context.mixing
    assert tied(mixing.over[0], seen.operands[0][1])
    assert (mixing.module, name in mixing.op) == ("block", True)


@pytest.mark.parametrize("name", ["sum", "amax", "argmax", "max", "prod", "logsumexp"])
def test_a_sum_over_channels_pins_them(name: str) -> None:
    seen = watch(lambda t: getattr(t, name)(dim=1), x(2, 6, 5))
    assert "new channels would change the target's values" in why(seen.operands[0][1])
    assert free(seen.operands[0][0])
    assert [t.size for t in seen.results[0]] == [2, 5]


def test_a_sum_over_everything_pins_everything() -> None:
    assert all(why(dim) for dim in watch(torch.sum, x(2, 6)).operands[0])


def test_a_sum_of_a_weight_is_a_statistic_of_it() -> None:
    seen = watch(lambda weight: weight / weight.sum(1, keepdim=True), w(4, 6))
    assert free(seen.operands[0][1])
    assert len(seen.context.mixing) == 1


@pytest.mark.parametrize("function", [lambda t: t.softmax(1), lambda t: t.log_softmax(1), lambda t: t.cumsum(1)])
def test_what_depends_on_all_along_a_dimension_pins_it(function: Callable[[Tensor], Tensor]) -> None:
    seen = watch(function, x(2, 6))
    assert "each element depends on all along it" in why(seen.operands[0][1])
    assert free(seen.operands[0][0])


@pytest.mark.parametrize("function", [lambda t: t.sort(1), lambda t: t.topk(2, 1), lambda t: t.argsort(1)])
def test_orders_by_value_pin(function: Callable[[Tensor], Any]) -> None:
    assert "values decide the order" in why(watch(function, x(3, 6)).operands[0][1])


# -- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_ties_its_tensors_and_marks_statistics(training: bool) -> None:
    mean, var = torch.nn.Parameter(torch.zeros(6)), torch.nn.Parameter(torch.ones(6))
    seen = watch(lambda d, m, v, s, b: F.batch_norm(d, m, v, s, b, training), x(3, 6, 5), mean, var, w(6), w(6))
    assert tied(seen.result[1], seen.operands[0][1], *(seen.operands[k][0] for k in (1, 2, 3, 4)))
    assert free(seen.result[1])
    assert seen.context.statistics == {"t1", "t2"}
    (mixing,) = seen.context.mixing
    assert mixing.over == (seen.operands[0][0], seen.operands[0][2]), "of a weight, these are its fan-in"


@pytest.mark.parametrize("function", [F.layer_norm, F.rms_norm])
def test_norms_over_the_last_dimensions_mix(function: Callable[..., Tensor]) -> None:
    seen = watch(lambda d, s: function(d, (6,), s), x(3, 5, 6), w(6))
    assert tied(seen.result[2], seen.operands[0][2], seen.operands[1][0])
    assert free(seen.result[2])
    assert seen.context.mixing


def test_layer_norm_notes_its_shape() -> None:
    seen = watch(lambda d: F.layer_norm(d, (5, 6)), x(3, 5, 6))
    assert tied(seen.notes["normalized_shape.0"], seen.operands[0][1])
    assert tied(seen.notes["normalized_shape.1"], seen.operands[0][2])


def test_group_norm_adds_groups() -> None:
    seen = watch(lambda d, s, b: F.group_norm(d, 2, s, b), x(3, 6, 5), w(6), w(6))
    groups, per_group = factors(seen.operands[1][0])
    assert tied(groups, seen.notes["num_groups"])
    assert free(groups)
    assert "channels per normalisation group" in why(per_group)
    assert not seen.context.mixing


def test_group_norm_of_one_group_mixes() -> None:
    seen = watch(lambda d: F.group_norm(d, 1), x(3, 6, 5))
    assert free(seen.operands[0][1])
    assert seen.context.mixing


def test_group_norm_of_single_channels_is_any_width() -> None:
    seen = watch(lambda d, s: F.group_norm(d, 6, s), x(3, 6, 5), w(6))
    assert tied(seen.operands[0][1], seen.notes["num_groups"], seen.operands[1][0])
    assert free(seen.operands[0][1])


def test_weight_norm_ties_direction_and_magnitude() -> None:
    seen = watch(lambda v, g: torch._weight_norm(v, g, 0), w(6, 4), w(6, 1))
    assert tied(seen.result[0], seen.operands[0][0], seen.operands[1][0])
    assert free(seen.result[1])


# -- pooling, resampling, padding ------------------------------------------------------------------------------------

SPATIAL: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("max pool", lambda t: F.max_pool2d(t, 2)),
    ("average pool", lambda t: F.avg_pool2d(t, 2)),
    ("adaptive pool", lambda t: F.adaptive_avg_pool2d(t, 2)),
    ("nearest", lambda t: F.interpolate(t, scale_factor=2)),
    ("bilinear", lambda t: F.interpolate(t, scale_factor=2, mode="bilinear")),
    ("bicubic", lambda t: F.interpolate(t, size=(5, 5), mode="bicubic", antialias=True)),
    ("reflection", lambda t: F.pad(t, (1, 1, 1, 1), mode="reflect")),
    ("replication", lambda t: F.pad(t, (1, 1, 1, 1), mode="replicate")),
    ("adaptive max pool", lambda t: F.adaptive_max_pool2d(t, 2)),
    ("unpool", lambda t: F.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), 2)),
]


@pytest.mark.parametrize("function", [case[1] for case in SPATIAL], ids=[case[0] for case in SPATIAL])
def test_channels_are_treated_one_by_one(function: Callable[[Tensor], Any]) -> None:
    seen = watch(function, x(2, 6, 4, 4))
    assert tied(seen.results[0][1], seen.operands[0][1])
    assert free(seen.operands[0][1])
    assert all("spatial dimension" in why(dim) for dim in seen.operands[0][2:])


def test_the_pooled_size_of_one_frees_nothing_else() -> None:
    seen = watch(lambda t: F.adaptive_avg_pool2d(t, 1), x(2, 6, 4, 4))
    assert seen.result[2:] == [Fixed(1), Fixed(1)]
    assert tied(seen.result[1], seen.operands[0][1])


def test_grid_sampling_keeps_channels() -> None:
    seen = watch(lambda t, grid: F.grid_sample(t, grid, align_corners=False), x(2, 6, 4, 4), x(2, 3, 3, 2))
    assert tied(seen.result[1], seen.operands[0][1])
    assert free(seen.result[1])
    assert "sampling" in why(seen.operands[1][1])


def test_padding_of_channels_is_a_constant_beside_them() -> None:
    seen = watch(lambda t: F.pad(t, (0, 0, 0, 0, 1, 2)), x(2, 6, 4, 4))
    assert parts(seen.result[1]) == [1, 6, 2]
    middle, _ = channels.split(channels.split(seen.result[1], 1)[1], 6)
    assert tied(middle, seen.operands[0][1])
    assert all("padding" in why(part) for part in channels.resolve(seen.result[1]).parts[::2])  # type: ignore[union-attr]
    assert free(seen.operands[0][1])
    assert free(seen.operands[0][2])


def test_cutting_by_negative_padding_pins() -> None:
    assert "a negative padding cuts it" in why(watch(lambda t: F.pad(t, (-1, 0)), x(2, 6)).operands[0][1])


# -- tensors made in the forward -------------------------------------------------------------------------------------


def test_constant_fills_take_any_size() -> None:
    seen = watch(lambda t: torch.cat([t, torch.zeros(2, 4)], 1), x(2, 6))
    assert parts(seen.result[1]) == [6, 4]
    assert len(list(channels.variables(seen.result[1]))) == 2


def test_counted_values_keep_their_size() -> None:
    seen = watch(lambda t: t + torch.arange(6.0), x(2, 6))
    assert "its values count positions" in why(seen.operands[0][1])


def test_constants_keep_their_size() -> None:
    constant = torch.rand(6)
    seen = watch(lambda t: t * constant, x(2, 6))
    assert "the tensor is a constant made in the forward" in why(seen.operands[0][1])


def test_noise_of_the_same_shape_follows() -> None:
    seen = watch(lambda t: t + torch.randn_like(t), x(2, 6))
    assert free(seen.operands[0][1])


def test_numbers_leave_the_tensor_world() -> None:
    seen = watch(lambda t: t * float(t[0, 0]), x(2, 6))
    assert "by number" in why(seen.operands[0][1])


def test_writing_into_a_weight_is_noted() -> None:
    seen = watch(lambda a, b: a.add_(b), w(6), x(6))
    assert seen.context.mutated == {"t0"}
    through = watch(lambda a, b: a[:3].mul_(b), w(6), x(3))
    assert through.context.mutated == {"t0"}
    assert not watch(lambda a, b: b.add_(a), w(6), x(6)).context.mutated
