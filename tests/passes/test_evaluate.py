"""Expressions at other widths, and whether the model's input takes part in them."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from torch import fx

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed, Product, Reason, Var
from netaug_fx.passes.evaluate import UNKNOWN, Evaluation, evaluate
from netaug_fx.passes.recorder import NodeRecord, Operand, node_records

WIDTH = Var(8)
ROWS = Fixed(6, Reason(channels.OF_SPACE))
ONE = Fixed(1, Reason(channels.OF_INPUT))


def expression(build: Any) -> tuple[Any, fx.Graph]:
    """What ``build`` makes of a tensor's proxy; the tensor is (1, 8, 2 x 8, 6)."""
    graph = fx.Graph()
    tensor = fx.Proxy(graph.placeholder("x"))
    dims = (ONE, WIDTH, Product((Fixed(2), WIDTH)), ROWS)
    node_records(tensor.node).append(NodeRecord(Operand(tuple(d.size for d in dims), dims), {}))
    made = build(tensor)
    return (made.node if isinstance(made, fx.Proxy) else made), graph


@pytest.mark.parametrize(
    ("build", "home", "elsewhere", "reads_input"),
    [
        (lambda x: x.shape[1] // 4, 2, 5, False),
        (lambda x: x.size(1) + x.shape[-2], 24, 60, False),
        (lambda x: x.shape[1:3][1], 16, 40, False),
        (lambda x: x.shape[3] * 2, 12, 12, True),
        (lambda x: x.shape[0] + 1, 2, 2, True),
        (lambda x: x.dim() + x.shape[1], 12, 24, False),
        (lambda x: x.shape[1:2] + (3,), (8, 3), (20, 3), False),  # noqa: RUF005
        (lambda x: x.shape[1] < x.shape[3], False, False, True),
        (lambda x: x.shape, (1, 8, 16, 6), (1, 20, 40, 6), True),
        (lambda x: x.shape[1] ** -0.5, 8**-0.5, 20**-0.5, False),
    ],
)
def test_expressions(build: Any, home: Any, elsewhere: Any, reads_input: bool) -> None:
    node, _graph = expression(build)
    at_home = Evaluation({})
    assert at_home.of(node) == home
    assert at_home.reads_input is reads_input
    assert evaluate(node, {WIDTH: 20}) == elsewhere


@pytest.mark.parametrize(
    "build",
    [
        lambda x: x.relu().shape[0],
        lambda x: x.shape[1] // 0,
        lambda x: x.shape[7],
        lambda x: x.stride(0),
        lambda x: fx.Proxy(x.node.graph.call_function(operator.add, (x.shape[1].node, x.relu().node))),
    ],
)
def test_what_is_made_of_more_than_shapes_is_unknown(build: Any) -> None:
    node, _graph = expression(build)
    assert evaluate(node, {}) is UNKNOWN


def test_a_number_that_is_doubled_again_and_again_is_evaluated_once_each() -> None:
    def build(x: Any) -> Any:
        number = x.shape[1]
        for _ in range(60):
            number = (number + number) // 2
        return number

    node, _graph = expression(build)
    assert evaluate(node, {WIDTH: 20}) == 20
