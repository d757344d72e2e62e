"""The table of rules itself: its names, what happens without a rule, and how users add their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError
from netaug_fx.passes import channels
from netaug_fx.passes.context import Context, Dims
from netaug_fx.passes.rules import MODULE_RULES, RULES, lookup, lookup_module, module_rule, rule
from tests.passes.watching import Apply, analysed, free, tied, w, watch, why, x


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    rules, module_rules = dict(RULES), dict(MODULE_RULES)
    yield
    RULES.clear()
    RULES.update(rules)
    MODULE_RULES.clear()
    MODULE_RULES.update(module_rules)


# -- the table -------------------------------------------------------------------------------------------------------


def test_every_name_is_one_of_an_operator() -> None:
    names = [name.removeprefix("aten::") for name in RULES if name != "elementwise"]
    assert len(names) > 200
    assert [name for name in names if not hasattr(torch.ops.aten, name)] == []


def test_every_rule_states_its_law() -> None:
    assert [name for name, function in RULES.items() if not function.__doc__] == []
    assert [cls for cls, function in MODULE_RULES.items() if not function.__doc__] == []


@pytest.mark.parametrize(
    ("op", "found"),
    [
        (torch.ops.aten.add_.Tensor, "elementwise"),
        (torch.ops.aten.sigmoid.default, "elementwise"),
        (torch.ops.aten.relu_.default, "elementwise"),
        (torch.ops.aten.masked_fill_.Scalar, "elementwise"),
        (torch.ops.aten.linear.default, "linear"),
        (torch.ops.aten.max.dim, "reduction"),
    ],
)
def test_operators_find_their_rule(op: Any, found: str) -> None:
    rule_found = lookup(op)
    assert rule_found is not None
    assert rule_found.__name__ == found


def test_a_second_rule_for_an_operator_has_to_be_asked_for() -> None:
    with pytest.raises(InputError, match=r"there is a rule for aten::mm already; pass replace=True"):
        rule("mm")(lambda ctx, a: None)
    mine = rule("mm", replace=True)(lambda ctx, a: None)
    assert lookup(torch.ops.aten.mm.default) is mine


# -- what has no rule, or a rule that fails --------------------------------------------------------------------------


def test_an_operator_without_a_rule_pins_its_inputs_with_a_reason() -> None:
    seen = watch(torch.linalg.inv, x(6, 6))
    assert "there is no rule for aten::linalg_inv_ex; register one with netaug_fx.passes.rules.rule" in why(
        seen.operands[0][0]
    )
    assert why(seen.result[1])


def test_an_operator_without_a_rule_costs_only_what_it_touches() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), Apply(lambda _, t: t @ torch.linalg.pinv(t)), nn.Linear(5, 7), nn.Linear(7, 3)
    )
    inspection = netaug_fx.inspect(model, example_inputs=torch.rand(5, 4))
    assert [group.name for group in inspection.groups] == ["2"]
    (pin,) = (pin for pin in inspection.pins if (pin.tensor, pin.dim) == ("0.weight", 0))
    assert "there is no rule for aten::" in pin.reason
    assert pin.module == "1"
    assert pin.location.startswith(__file__)


def test_a_rule_that_raises_pins() -> None:
    @rule("sigmoid")
    def broken(ctx: Context, a: Any) -> Dims:
        raise KeyError("oh")

    seen = watch(torch.sigmoid, x(2, 6))
    assert "its rule failed: KeyError('oh')" in why(seen.operands[0][1])
    assert [t.size for t in seen.result] == [2, 6]


def test_a_rule_that_gives_another_shape_pins() -> None:
    rule("sigmoid")(lambda ctx, a: [channels.Fixed(2), channels.Fixed(5)])
    assert "gave shape [2, 5], not [2, 6]" in why(watch(torch.sigmoid, x(2, 6)).operands[0][1])


def test_a_rule_that_gives_too_few_results_pins() -> None:
    rule("sort", replace=True)(lambda ctx, a: [ctx.dims(a.input)])
    assert "gave 1 results, not 2" in why(watch(torch.sort, x(2, 6)).operands[0][1])


def test_widths_that_cannot_be_equal_pin_both_sides() -> None:
    seen = watch(lambda a, b: a.reshape(4, 9).t().reshape(36) + b.reshape(6, 6).t().reshape(36), x(36), x(36))
    assert "share no boundary" in why(seen.operands[0][0])
    assert "share no boundary" in why(seen.operands[1][0])


# -- one's own (the worked examples of passes/README.md) -------------------------------------------------------------


README = Path(__file__).parents[2] / "passes" / "README.md"


def worked_example(word: str) -> str:
    """The README's piece of code that speaks of ``word``, so that what users read is what runs."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if word in code)
    return str(code)


@torch.library.custom_op("netaug_test::scaled_sum", mutates_args=())
def scaled_sum(data: Tensor, weight: Tensor) -> Tensor:
    """data (N, C, L) and weight (C) -> (N, L): channels are weighted and summed."""
    return torch.einsum("ncl,c->nl", data, weight)


@scaled_sum.register_fake
def _(data: Tensor, weight: Tensor) -> Tensor:
    return data.new_empty(data.shape[0], data.shape[2])


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 1)
        self.weight = nn.Parameter(torch.rand(8))

    def forward(self, data: Tensor) -> Tensor:
        return scaled_sum(self.stem(data), self.weight)


def test_a_rule_for_an_operator_of_ones_own() -> None:
    model, inputs = Summed(), torch.rand(2, 3, 5)
    before = analysed(model, inputs)
    assert "there is no rule for netaug_test::scaled_sum" in why(before.tensors["weight"][0])

    exec(worked_example("scaled_sum"), {})
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=inputs)
    assert [(group.name, group.choices) for group in supernet.groups] == [("stem", (8, 12, 16))]
    assert torch.equal(supernet(inputs), model(inputs))
    with torch.no_grad():
        supernet.weight_netaug0.zero_()  # type: ignore[attr-defined]
    with supernet.augmented(supernet.widest):
        torch.testing.assert_close(supernet(inputs), model(inputs))


class Shuffled(nn.Module):
    """A module whose Python demands a whole number of folds: something that no operator tells."""

    def __init__(self, width: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, data: Tensor) -> Tensor:
        c = data.shape[1]
        assert c % self.fold == 0, "the width must be a multiple of the fold"
        return data * self.scale[:, None]


def test_a_rule_for_a_module_of_ones_own() -> None:
    model, inputs = nn.Sequential(nn.Conv1d(3, 6, 1), Shuffled(6, 3), nn.Conv1d(6, 4, 1)), torch.rand(2, 3, 5)

    exec(worked_example("Shuffled"), {"Shuffled": Shuffled})
    supernet = netaug_fx.augment(model, ratio=2, example_inputs=inputs)
    assert [(group.width, group.choices) for group in supernet.groups] == [(2, (2, 3, 4))], "folds, not channels"
    with supernet.augmented(supernet.widest):
        assert supernet(inputs).shape == (2, 4, 5)


def test_a_module_rule_that_fails_pins_what_the_module_touches() -> None:
    @module_rule(Shuffled)
    def broken(ctx: Context, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        raise ValueError("no")

    analysis = analysed(nn.Sequential(nn.Conv1d(3, 6, 1), Shuffled(6, 3), nn.Conv1d(6, 4, 1)), torch.rand(2, 3, 5))
    assert "the rule of Shuffled cannot be met: no" in why(analysis.tensors["1.scale"][0])
    assert tied(analysis.tensors["0.weight"][0], analysis.tensors["1.scale"][0])


def test_subclasses_inherit_a_module_rule() -> None:
    class Own(nn.MultiheadAttention):
        pass

    assert lookup_module(Own(8, 2)) is MODULE_RULES[nn.MultiheadAttention]
    assert lookup_module(nn.Linear(2, 2)) is None


# -- modules of torch.nn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kdim", [None, 8])
def test_multihead_attention_grows_in_heads(kdim: int | None) -> None:
    model = nn.MultiheadAttention(12, 3, kdim=kdim, vdim=kdim, batch_first=True)
    stem = nn.Linear(5, 12)
    other = nn.Linear(5, kdim or 12)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.other, self.attention, self.head = stem, other, model, nn.Linear(12, 2)

        def forward(self, data: Tensor) -> Tensor:
            key = self.other(data)
            return self.head(self.attention(self.stem(data), key, key, need_weights=False)[0])  # type: ignore[no-any-return]

    analysis = analysed(Net(), torch.rand(2, 4, 5))
    heads = analysis.integers["attention"]["num_heads"]
    assert free(heads)
    embed = analysis.integers["attention"]["embed_dim"]
    assert tied(embed, channels.Product((heads, channels.Fixed(4, channels.pin_reason(embed)))))
    assert tied(analysis.tensors["attention.out_proj.weight"][0], embed)
    assert list(channels.variables(analysis.tensors["stem.weight"][0])) == [channels.resolve(heads)]


@pytest.mark.parametrize(
    ("norm", "data", "width"),
    [
        (nn.InstanceNorm1d(6), torch.rand(2, 6, 5), 1),
        (nn.InstanceNorm2d(6), torch.rand(6, 5, 5), 0),
        (nn.InstanceNorm3d(6, affine=True), torch.rand(2, 6, 3, 3, 3), 1),
    ],
)
def test_instance_norm_follows_its_input(norm: nn.Module, data: Tensor, width: int) -> None:
    model = nn.Sequential(Apply(lambda m, t: t * m.gain, gain=(6, *[1] * (data.dim() - width - 1))), norm)
    analysis = analysed(model, data)
    assert tied(analysis.integers["1"]["num_features"], analysis.tensors["0.gain"][0])


def test_rms_norm_follows_its_input() -> None:
    analysis = analysed(nn.Sequential(nn.Linear(3, 6), nn.RMSNorm(6), nn.Linear(6, 2)), torch.rand(4, 3))
    assert tied(analysis.integers["1"]["normalized_shape.0"], analysis.tensors["1.weight"][0])
    assert free(analysis.tensors["1.weight"][0])


def test_weights_need_not_be_parameters_of_a_known_module() -> None:
    seen = watch(lambda data, a, b: (data @ a.t()).relu() @ b, x(3, 4), w(6, 4), w(6, 2))
    assert tied(seen.operands[1][0], seen.operands[2][0])
    assert (seen.reads(2), seen.writes(1)) == ({0}, {0})
