"""Graphs held against each other: what is isomorphic, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, nn

from netaug_fx.passes.compare_graphs import LabelledGraph, Vertex, difference, from_modules, from_onnx
from netaug_fx.passes.onnx_export import export_onnx


class BranchesOnValues(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * 2 if float(y.abs().sum()) >= 0 else y


def chain(length: int, labels: Callable[[int], str] = lambda index: str(index % 5)) -> LabelledGraph:
    """A chain with a skip over every second vertex."""
    inputs = [(((0, index - 1), (1, index - 2)) if index > 1 else ()) for index in range(length)]
    return LabelledGraph(tuple(Vertex((labels(index),), inputs[index]) for index in range(length)))


def branches(order: list[int], length: int = 30) -> LabelledGraph:
    """Equal branches from one source to one sum, written down in the given order; the last branch is another."""
    vertices, ends = [Vertex(("source",), ())], {}
    for branch in order:
        last = 0
        for step in range(length):
            kind = "odd" if branch == len(order) - 1 and step == 3 else "step"
            vertices.append(Vertex((kind,), ((0, last),)))
            last = len(vertices) - 1
        ends[branch] = last
    vertices.append(Vertex(("sum",), tuple((slot, ends[branch]) for slot, branch in enumerate(sorted(ends)))))
    return LabelledGraph(tuple(vertices))


def test_graphs_of_thousands_of_vertices() -> None:
    assert difference(chain(5000), chain(5000)) is None
    found = difference(chain(5000), chain(5000, lambda index: "x" if index == 4321 else str(index % 5)))
    assert found is not None
    assert "expected x" in found
    assert "5000 vertices, 4999 expected" in str(difference(chain(5000), chain(4999)))


def test_another_order_of_independent_branches_is_isomorphic() -> None:
    assert difference(branches([0, 1, 2]), branches([2, 0, 1])) is None
    graph = branches([0, 1, 2]).to_networkx()
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_directed_acyclic_graph(graph)


def test_swapped_operands_are_not() -> None:
    def minus(left: int, right: int) -> LabelledGraph:
        return LabelledGraph((Vertex(("a",), ()), Vertex(("b",), ()), Vertex(("-",), ((0, left), (1, right)))))

    assert difference(minus(0, 1), minus(0, 1)) is None
    assert "reads other values" in str(difference(minus(0, 1), minus(1, 0)))


def test_fx_graphs_of_opaque_modules_hold_their_own_forward() -> None:
    plain, patched = BranchesOnValues(), BranchesOnValues()
    patched.forward = lambda x: x  # type: ignore[method-assign,assignment]
    assert difference(from_modules(plain), from_modules(BranchesOnValues())) is None
    assert difference(from_modules(patched), from_modules(plain)) is not None


def test_onnx_graphs_see_attributes_and_shapes_but_not_weights(tmp_path: Path) -> None:
    def graph(net: nn.Module, name: str) -> LabelledGraph:
        return from_onnx(export_onnx(net, tmp_path / f"{name}.onnx", torch.rand(2, 3, 6, 6)))

    one, other = graph(nn.Conv2d(3, 4, 3), "a"), graph(nn.Conv2d(3, 4, 3), "b")
    assert difference(one, other) is None
    assert "dilations" in str(difference(graph(nn.Conv2d(3, 4, 3, padding=2, dilation=2), "c"), one))
    assert "[4, 3, 5, 5]" in str(difference(graph(nn.Conv2d(3, 4, 5), "d"), one))
