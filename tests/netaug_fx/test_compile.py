"""``torch.compile`` on a supernet: one graph for the target, one for each assignment of a pool, the same values."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import netaug_fx
from netaug_fx.elastic import is_elastic
from netaug_fx.passes.copying import copy_model
from tests import invariants
from tests.netaug_fx.small_nets import Mlp
from tests.wirings import WIRINGS

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3])
FOLLOWED = (
    *("residual_identity", "depthwise", "shufflenet_units", "literal_view", "literal_in_child", "ghost_odd"),
    *("attention_fused_qkv", "swin_window_attention", "group_norm_by_hand", "split_sizes"),
)
"""Wirings with rewritten forwards, channels that alternate, heads, norms: what a compiler could stumble over."""


class Shuffled(nn.Module):
    """A block whose forward holds widths, and whose halves are joined: original and extra channels alternate."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(12)
        self.out = nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        n, _, height, width = joined.shape
        shuffled = joined.view(n, 2, 6, height, width).transpose(1, 2).reshape(n, 12, height, width)
        return x + self.out(self.norm(shuffled).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Shuffled(), Shuffled())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def make_net() -> nn.Module:
    torch.manual_seed(1)
    return Net()


def make_supernet() -> netaug_fx.Supernet:
    return netaug_fx.augment(make_net(), 3, example_inputs=X)


def loss_of(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(X), Y)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(net: nn.Module) -> tuple[Any, CompileCounterWithBackend]:
    """The net compiled as one graph, or an error; and what counts the compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(net, backend=counter, fullgraph=True), counter


def operators(graph: Any) -> list[str]:
    return [f"{node.op} {node.target}" for node in graph.graph.nodes if node.op != "placeholder"]


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_the_target_is_compiled_once_as_the_plain_model_is() -> None:
    supernet, model = make_supernet(), make_net()
    ours, counted = compiled(supernet)
    for _ in range(3):
        loss_of(ours).backward()
    assert counted.frame_count == 1
    theirs, plain = compiled(model)
    for _ in range(3):
        loss_of(theirs).backward()
    assert [operators(graph) for graph in counted.graphs] == [operators(graph) for graph in plain.graphs]
    twins = dict(supernet.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(twins[name].grad, parameter.grad)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(supernet.get_buffer(name), buffer)


def test_each_assignment_of_a_pool_is_compiled_once() -> None:
    supernet = make_supernet()
    eager = copy.deepcopy(supernet)
    net, counted = compiled(supernet)
    seen = set()
    for _ in range(12):
        done, expected = (netaug_fx.step(each, loss_of, pool=3) for each in (net, eager))
        assert done.widths == expected.widths
        torch.testing.assert_close((done.loss, done.augmented), (expected.loss, expected.augmented))
        seen.add(tuple(done.widths[0].values()))
    assert len(seen) == 3
    assert counted.frame_count == 1 + 3
    assert_same_gradients(supernet, eager)


def test_another_pool_costs_as_many_compilations_again() -> None:
    supernet = make_supernet()
    net, counted = compiled(supernet)
    seen = set()
    for epoch in range(2):
        for _ in range(8):
            done = netaug_fx.step(net, loss_of, pool=2, pool_number=epoch)
            seen.add(tuple(done.widths[0].values()))
    assert len(seen) == 4
    assert counted.frame_count == 1 + 4


@pytest.mark.parametrize("name", FOLLOWED)
def test_wider_nets_are_one_graph(name: str) -> None:
    wiring = WIRINGS[name]
    inputs = wiring.inputs(2)
    supernet = netaug_fx.augment(wiring.build(), 3, example_inputs=inputs)
    twin = copy_model(supernet)
    net, counted = compiled(twin)
    for widths in ({}, invariants.widest(supernet)):
        with netaug_fx.Supernet.augmented(twin, widths):
            ours = invariants.run(net, inputs)
            invariants.loss(ours).backward()
        with netaug_fx.Supernet.augmented(supernet, widths):
            theirs = invariants.run(supernet, inputs)
            invariants.loss(theirs).backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    assert_same_gradients(twin, supernet)
    assert counted.frame_count == 2


class Tracked(nn.Module):
    """Keeps a mean of its channels, and how often it was called, in buffers that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
            self.calls += 1
        return self.b(x - self.mean)  # type: ignore[no-any-return]


def test_a_net_that_writes_into_buffers_is_one_graph_at_each_assignment() -> None:
    x = torch.randn(4, 6)
    supernet = netaug_fx.augment(Tracked(), 3, example_inputs=x)
    eager = copy.deepcopy(supernet)
    net, counted = compiled(supernet)
    for widths in ({}, {"a": 16}, {"a": 24}, {"a": 16}):
        for each, around in ((net, supernet), (eager, eager)):
            each(x).square().mean().backward()
            with around.augmented(widths):
                each(x).square().mean().backward()
    assert_same_gradients(supernet, eager)
    for ours, theirs in zip(supernet.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert counted.frame_count == 1 + 3


def test_the_dense_net_of_evolve_is_one_graph() -> None:
    split = netaug_fx.evolve(make_net(), keep=0.5, example_inputs=X)
    eager = copy.deepcopy(split)
    net, counted = compiled(split)
    for _ in range(2):
        for each, around in ((net, split), (eager, eager)):
            with around.dense():
                loss_of(each).backward()
    assert_same_gradients(split, eager)
    for ours, theirs in zip(split.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert counted.frame_count == 1


def test_index_tensors_are_made_before_the_pass() -> None:
    """In the graph they would be made anew in every pass, on the CPU, and copied: a GPU would wait."""
    wiring = WIRINGS["dense_running_concat"]
    inputs = wiring.inputs(2)
    supernet = netaug_fx.augment(wiring.build(), 3, example_inputs=inputs)
    net, counted = compiled(supernet)
    with supernet.augmented(supernet.widest):
        invariants.run(net, inputs)
    (graph,) = counted.graphs
    used = {getattr(node.target, "__name__", node.target) for node in graph.graph.nodes}
    assert "index_select" in used
    assert not used & {"arange", "tensor", "zeros", "full"}


def test_calibrated_wider_nets_are_compiled_too() -> None:
    supernet = make_supernet()
    netaug_fx.calibrate_(supernet, [X], supernet.widest)
    net, counted = compiled(supernet.eval())
    with torch.no_grad(), supernet.augmented(supernet.widest):
        torch.testing.assert_close(net(X), supernet(X))
    assert counted.frame_count == 1


def test_what_was_pickled_is_compiled() -> None:
    kept = io.BytesIO()
    torch.save(make_supernet(), kept)
    kept.seek(0)
    supernet = torch.load(kept, weights_only=False)
    net, counted = compiled(supernet)
    with supernet.augmented(supernet.widest):
        ours = net(X)
        torch.testing.assert_close(ours, supernet(X))
    assert counted.frame_count == 1


def test_a_supernet_that_was_compiled_in_place_is_extracted_plain() -> None:
    supernet = make_supernet()
    supernet.compile(backend="eager", fullgraph=True)
    netaug_fx.step(supernet, loss_of)
    tiny = netaug_fx.extract(supernet)
    assert tiny._compiled_call_impl is None
    assert not any(is_elastic(module) for module in tiny.modules())
    torch.testing.assert_close(tiny.eval()(X), supernet.eval()(X))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's own backend needs a C++ compiler (g++)")
def test_the_default_backend_gives_the_same_gradients() -> None:
    def loss(net: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(net(x), labels)

    x, labels = torch.randn(4, 4), torch.tensor([0, 1, 1, 0])
    supernet = netaug_fx.augment(Mlp(), 3, example_inputs=x)
    eager = copy.deepcopy(supernet)
    net = torch.compile(supernet, fullgraph=True)
    for each in (net, eager):
        netaug_fx.step(each, loss, pool=1)
    assert_same_gradients(supernet, eager)
