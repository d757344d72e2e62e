"""One graph per forward, or the reason in words why there is none."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from netaug_fx.errors import BranchError
from netaug_fx.passes.trace import is_traced, trace


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


def code(graph: fx.Graph) -> str:
    return str(graph)


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
    assert code(training) != code(evaluation)
    assert code(evaluation) == code(graph_of(module.eval()))
    assert code(graph_of(Block().train())) == code(graph_of(Block().eval()))


def test_graphs_that_differ_in_an_argument_are_different_code() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, data: Tensor) -> Tensor:
            return data * self.factor

    assert code(graph_of(Scaled(2))) != code(graph_of(Scaled(3)))
    assert code(graph_of(Scaled(2))) == code(graph_of(Scaled(2)))


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
    assert code(graph) == code(module.graph)


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


# -- what an example call answers --------------------------------------------------------------------


@fx.wrap
def as_rows(data: Tensor) -> Tensor:
    return data.view(-1, 2)


class CallsWrapped(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return as_rows(data) * 2


class Optional(nn.Module):
    def forward(self, data: Tensor, mask: Tensor | None = None, *, scaled: bool = False) -> Tensor:
        if mask is not None:
            data = data + mask
        return data * 2 if scaled else data


class Padded(nn.Module):
    """Pads its image to even sizes."""

    def forward(self, data: Tensor) -> Tensor:
        rows = data.shape[-2]
        return nn.functional.pad(data, (0, 0, 0, 1)) if rows % 2 else data


class Listed(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        total = maps[0]
        for index in range(1, len(maps)):
            total = total + maps[index]
        return torch.stack([total, *maps]).sum(0)


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def forward(self, data: Tensor) -> Tensor:
        if self.cache is None or self.cache.shape[0] != data.shape[1]:
            self.cache = torch.ones(data.shape[1])
        return data * self.cache


def traced_on(module: nn.Module, *args: Any, **kwargs: Any) -> fx.GraphModule:
    found = trace(module, (args, kwargs))
    assert found.failure == ""
    assert found.graph is not None
    return fx.GraphModule(module, found.graph)


DATA = torch.arange(12.0).reshape(3, 4)


def test_an_argument_left_out_decides_the_way_and_is_guarded() -> None:
    module = Optional()
    graph = traced_on(module, DATA)
    assert torch.equal(graph(DATA), module(DATA))
    with pytest.raises(BranchError, match="argument 'mask' is tensor"):
        graph(DATA, DATA)
    with pytest.raises(BranchError, match="argument 'scaled' is True, but was False"):
        graph(DATA, scaled=True)
    assert torch.equal(traced_on(module, DATA, mask=DATA, scaled=True)(DATA, DATA, scaled=True), DATA * 4)


def test_a_condition_on_sizes_is_answered_from_the_example_and_guarded() -> None:
    graph = traced_on(Padded(), DATA)
    assert graph(DATA).shape == (4, 4)
    with pytest.raises(BranchError, match=r"the condition .*rows % 2"):
        graph(DATA[:2])


def test_any_number_of_arguments_and_lists_are_followed() -> None:
    assert torch.equal(traced_on(AnyNumber(), DATA, DATA)(DATA, DATA), torch.cat([DATA, DATA], 1))
    with pytest.raises(BranchError, match=r"what is given as argument 'tensors' is .*'tensor', 'tensor', 'tensor'"):
        traced_on(AnyNumber(), DATA, DATA)(DATA, DATA, DATA)
    assert torch.equal(traced_on(Keyed(), a=DATA, b=DATA)(a=DATA, b=DATA), DATA)
    with pytest.raises(BranchError, match="what is given as argument 'tensors'"):
        traced_on(Keyed(), a=DATA)(a=DATA, c=DATA)
    assert torch.equal(traced_on(Listed(), [DATA, DATA])([DATA, DATA]), DATA * 4)


def test_values_are_computed_through_children_only_where_they_are_asked_for() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, data: Tensor) -> Tensor:
            hidden = self.first(data)
            return self.second(hidden) if hidden.shape[1] > 5 else hidden

    module, calls = Asks(), []
    for name in ("first", "second"):
        getattr(module, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    graph = traced_on(module, DATA)
    assert calls == ["first"]
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module"] == ["first", "second"]


def test_values_of_tensors_decide_nothing() -> None:
    found = trace(DataDependent(), ((DATA,), {}))
    assert found.graph is None
    assert "control flow" in found.failure


def test_an_attribute_assigned_on_the_way_is_put_back_and_refused() -> None:
    module = Caches()
    found = trace(module, ((DATA,), {}))
    assert found.graph is None
    assert found.failure == "it assigns attributes, which a graph would not repeat"
    assert module.cache is None


def test_a_cache_that_is_full_is_no_hindrance() -> None:
    module = Caches()
    module(DATA)
    assert torch.equal(traced_on(module, DATA)(DATA), DATA)


def test_arguments_are_handed_over_as_they_were_in_the_call() -> None:
    def fills_in(forward: Any) -> Any:
        @functools.wraps(forward)
        def filled(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("scaled", True)
            return forward(self, *args, **kwargs)

        return filled

    class Decorated(nn.Module):
        @fills_in
        def forward(self, data: Tensor, scaled: bool | None = None, **other: Any) -> Tensor:
            return data * 2 if scaled else data

    assert torch.equal(traced_on(Decorated(), DATA)(DATA), DATA * 2)
    assert torch.equal(traced_on(Decorated(), data=DATA, scaled=False, more="")(DATA, False, more=""), DATA)


def test_wrapped_functions_are_followed() -> None:
    module = CallsWrapped()
    graph = traced_on(module, DATA)
    assert torch.equal(graph(DATA), module(DATA))
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_method"] == ["view"]
