"""One graph per forward, or the reason in words why there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from netaug_fx.passes.trace import is_traced, same_code, trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6))

    def forward(self, data: Tensor, factor: float = 2.0) -> Tensor:
        return self.inner(data) * self.scale * factor + self.shift


class DataDependent(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return data if data.sum() > 0 else -data


class AnyNumber(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, 1)


class Keyed(nn.Module):
    def forward(self, **tensors: Tensor) -> Tensor:
        return tensors["a"]


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, data: Tensor) -> Tensor:
        self.last = data
        return data


class Iterates(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in data])


class Factories(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        padding = torch.zeros(data.shape[0], 3, device=data.device)
        return torch.cat([data, padding, torch.ones(2, 2)], 1) + torch.arange(9)


class ByMode(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return torch.relu(data) if self.training else data


class Fails(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line")


def graph_of(module: nn.Module) -> fx.Graph:
    found = trace(module)
    assert found.failure == ""
    assert found.graph is not None
    return found.graph


def test_children_stay_calls_and_tensors_stay_attributes() -> None:
    nodes = [(node.op, str(node.target)) for node in graph_of(Block()).nodes]
    assert ("call_module", "inner") in nodes
    assert [target for op, target in nodes if op == "get_attr"] == ["scale", "shift"]
    assert [target for op, target in nodes if op == "placeholder"] == ["data", "factor"]
    assert not any("inner.0" in target for _, target in nodes), "grandchildren are traced with their own parent"


def test_the_graph_computes_what_the_forward_computes() -> None:
    block, data = Block(), torch.rand(3, 4)
    assert torch.equal(fx.GraphModule(block, graph_of(block))(data), block(data))


def test_nodes_know_their_line_in_the_users_code() -> None:
    node = next(node for node in graph_of(Block()).nodes if node.op == "call_module")
    assert node.stack_trace is not None
    assert __file__ in node.stack_trace


def test_tensors_made_in_the_forward_are_recorded() -> None:
    made = [node.target for node in graph_of(Factories()).nodes if node.op == "call_function"]
    assert [function for function in made if function in (torch.zeros, torch.ones, torch.arange)] == [
        torch.zeros,
        torch.ones,
        torch.arange,
    ]
    assert torch.zeros(2).tolist() == [0.0, 0.0], "torch's own functions are back in their place"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (DataDependent(), "torch.fx cannot follow it: TraceError: symbolically traced variables cannot be used as"),
        (AnyNumber(), "takes a variable number of arguments"),
        (Keyed(), "takes a variable number of arguments"),
        (Remembers(), "it assigns attributes, which a graph would not repeat"),
        (Iterates(), "torch.fx cannot follow it: TraceError: Proxy object cannot be iterated"),
        (Fails(), "torch.fx cannot follow it: ValueError: first line"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_followed_is_said_in_one_line(module: nn.Module, words: str) -> None:
    found = trace(module)
    assert found.graph is None
    assert words in found.failure
    assert "\n" not in found.failure


def test_a_failed_trace_leaves_torch_as_it_was() -> None:
    before = torch.zeros, torch.arange
    trace(Fails())
    assert (torch.zeros, torch.arange) == before


def test_each_training_mode_has_its_own_graph() -> None:
    module = ByMode()
    training, evaluation = graph_of(module.train()), graph_of(module.eval())
    assert not same_code(training, evaluation)
    assert same_code(evaluation, graph_of(module.eval()))
    assert same_code(graph_of(Block().train()), graph_of(Block().eval()))


def test_graphs_that_differ_in_an_argument_are_different_code() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, data: Tensor) -> Tensor:
            return data * self.factor

    assert not same_code(graph_of(Scaled(2)), graph_of(Scaled(3)))
    assert same_code(graph_of(Scaled(2)), graph_of(Scaled(2)))


def test_tracing_leaves_the_module_untouched() -> None:
    block = Block()
    calls: list[str] = []
    block.register_forward_hook(lambda *_: calls.append("outer"))
    block.inner.register_forward_hook(lambda *_: calls.append("inner"))
    attributes = {path: dict(vars(module)) for path, module in block.named_modules()}
    state, random = {key: value.clone() for key, value in block.state_dict().items()}, torch.get_rng_state()
    trace(block)
    assert calls == []
    assert {path: dict(vars(module)) for path, module in block.named_modules()} == attributes
    assert all(torch.equal(value, state[key]) for key, value in block.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_graph_module_is_copied_as_it_is() -> None:
    module = fx.symbolic_trace(Block())
    graph = graph_of(module)
    assert graph is not module.graph
    assert same_code(graph, module.graph)


@pytest.mark.parametrize(
    ("module", "expected"),
    [(Block(), True), (nn.Linear(2, 2), False), (nn.Sequential(), False), (nn.Unflatten(1, (2, 3)), True)],
    ids=lambda value: type(value).__name__,
)
def test_torchs_own_forwards_are_left_alone_unless_they_hold_sizes(module: nn.Module, expected: bool) -> None:
    assert is_traced(module) is expected


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules_have_no_python_to_trace() -> None:
    assert not is_traced(torch.jit.script(nn.Linear(2, 2)))
