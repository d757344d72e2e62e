"""Matrix products and convolutions: what is summed over is one width, and who reads and writes is noted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from netaug_fx.passes import channels
from tests.passes.watching import factors, free, parts, tied, w, watch, why, x

CHANGES_VALUES = "two activations are contracted over it"


def test_linear_ties_inputs_and_writes_outputs() -> None:
    seen = watch(F.linear, x(2, 5, 6), w(4, 6), w(4))
    data, weight, bias = seen.operands
    assert tied(data[-1], weight[1])
    assert tied(seen.result[-1], weight[0], bias[0])
    assert free(weight[0])
    assert tied(seen.result[0], data[0])
    assert tied(seen.result[1], data[1])
    assert (seen.reads(1), seen.writes(1)) == ({1}, {0})
    assert not seen.reads(2) | seen.writes(2), "a bias follows, it reads and writes nothing"


@pytest.mark.parametrize("function", [torch.mm, torch.matmul, lambda a, b: torch.einsum("ij,jk->ik", a, b)])
def test_a_weight_from_either_side(function: object) -> None:
    left = watch(function, w(4, 6), x(6, 5))  # type: ignore[arg-type]
    assert tied(left.operands[0][1], left.operands[1][0])
    assert tied(left.result[0], left.operands[0][0])
    assert (left.reads(0), left.writes(0)) == ({1}, {0})
    right = watch(function, x(5, 6), w(6, 4))  # type: ignore[arg-type]
    assert tied(right.operands[0][1], right.operands[1][0])
    assert (right.reads(1), right.writes(1)) == ({0}, {1})


def test_two_weights_are_merged_into_one_weight() -> None:
    seen = watch(lambda a, b, data: data @ (a @ b), w(6, 3), w(3, 4), x(5, 6))
    assert tied(seen.operands[0][1], seen.operands[1][0])
    assert seen.reads(0) == {0, 1}
    assert seen.reads(1) == set(), "one factor is enough: whoever scales the other twice loses variance"
    assert seen.writes(1) == {1}
    assert free(seen.operands[0][1])


def test_two_activations_pin_what_they_sum_over() -> None:
    seen = watch(torch.mm, x(4, 6), x(6, 5))
    assert CHANGES_VALUES in why(seen.operands[0][1])
    assert "mm" in why(seen.operands[1][0])
    assert free(seen.operands[0][0])


def test_batches_of_attention_are_noted_as_heads() -> None:
    seen = watch(torch.bmm, x(3, 4, 6), x(3, 6, 5))
    assert tied(seen.operands[0][0], seen.operands[1][0], seen.result[0])
    assert free(seen.result[0])
    assert seen.context.heads == [seen.operands[0][0]]
    assert CHANGES_VALUES in why(seen.operands[0][2])


@pytest.mark.parametrize(
    ("function", "operands", "contracted"),
    [
        (torch.addmm, (w(4), x(5, 6), w(6, 4)), ((1, 1), (2, 0))),
        (torch.baddbmm, (x(3, 1, 4), x(3, 5, 6), w(3, 6, 4)), ((1, 2), (2, 1))),
        (torch.mv, (w(4, 6), x(6)), ((0, 1), (1, 0))),
        (torch.addmv, (x(4), w(4, 6), x(6)), ((1, 1), (2, 0))),
        (torch.dot, (w(6), x(6)), ((0, 0), (1, 0))),
    ],
)
def test_other_products_tie_what_they_sum_over(function: object, operands: tuple, contracted: tuple) -> None:  # type: ignore[type-arg]
    seen = watch(function, *operands)  # type: ignore[arg-type]
    (a, i), (b, j) = contracted
    assert tied(seen.operands[a][i], seen.operands[b][j])
    assert free(seen.operands[a][i])
    assert seen.reads(a) or seen.reads(b)


# -- convolutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_at_every_rank(rank: int) -> None:
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    space = (5, 5, 5)[:rank]
    seen = watch(conv, x(2, 4, *space), w(6, 4, *[3] * rank), w(6))
    data, weight, bias = seen.operands
    assert tied(data[1], weight[1])
    assert tied(seen.result[1], weight[0], bias[0])
    assert free(weight[0])
    assert free(weight[1])
    assert all("a convolution slides over it" in why(dim) for dim in data[2:])
    assert all("it is a kernel size" in why(dim) for dim in weight[2:])
    assert (seen.reads(1), seen.writes(1)) == ({1}, {0})


def test_an_equal_spatial_size_means_nothing() -> None:
    seen = watch(F.conv2d, x(2, 5, 5, 5), w(5, 5, 5, 5))
    assert not tied(seen.operands[1][0], seen.operands[1][1])
    assert free(seen.operands[1][0])


def test_transposed_convolution_reads_its_first_dimension() -> None:
    seen = watch(F.conv_transpose2d, x(2, 4, 5, 5), w(4, 6, 3, 3))
    assert tied(seen.operands[0][1], seen.operands[1][0])
    assert tied(seen.result[1], seen.operands[1][1])
    assert (seen.reads(1), seen.writes(1)) == ({0}, {1})


def test_depthwise_convolution_grows_in_groups() -> None:
    seen = watch(lambda data, weight: F.conv2d(data, weight, groups=6), x(2, 6, 5, 5), w(6, 1, 3, 3))
    assert tied(seen.operands[0][1], seen.operands[1][0], seen.result[1], seen.notes["groups"])
    assert free(seen.result[1])
    assert not seen.writes(1), "a depthwise layer passes channels on; whoever made them writes them"


def test_depthwise_multiplier_repeats_each_channel() -> None:
    seen = watch(lambda data, weight: F.conv2d(data, weight, groups=4), x(2, 4, 5, 5), w(8, 1, 3, 3))
    groups, multiplier = factors(seen.result[1])
    assert tied(groups, seen.operands[0][1])
    assert multiplier.size == 2
    assert "number of output channels per group" in why(multiplier)


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution_adds_groups_of_the_size_they_have(transposed: bool) -> None:
    conv = F.conv_transpose2d if transposed else F.conv2d
    weight = w(8, 3, 3, 3) if transposed else w(12, 4, 3, 3)
    data = x(2, 8, 5, 5)
    seen = watch(lambda d, k: conv(d, k, groups=4 if transposed else 2), data, weight)
    groups, per_group = factors(seen.operands[0][1])
    assert tied(groups, seen.notes["groups"], factors(seen.result[1])[0])
    assert "number of input channels per group" in why(per_group)
    assert "groups grow in number" in why(seen.operands[1][1])
    assert free(groups)
    assert seen.writes(1) == {0}


def test_a_weight_computed_from_the_input_is_summed_without_growing() -> None:
    seen = watch(F.conv2d, x(2, 4, 5, 5), x(6, 4, 1, 1))
    assert CHANGES_VALUES in why(seen.operands[0][1])


def test_attention_keeps_heads_free_and_head_width_pinned() -> None:
    def attention(data: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = F.linear(data, qkv).reshape(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32)

    seen = watch(attention, x(2, 5, 6), w(96, 6))
    three, heads, head_width = factors(seen.operands[1][0])
    assert (three.size, heads.size, head_width.size) == (3, 4, 8)
    assert free(heads)
    assert "single elements are taken out of it" in why(three)
    assert CHANGES_VALUES in why(head_width)
    assert any(var is channels.resolve(heads) for t in seen.context.heads for var in channels.variables(t))
    assert parts(seen.result[-1]) == [32]
