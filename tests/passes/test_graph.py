"""Groups, pins and the dependency graph: names, kinds, and who writes and reads."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from netaug_fx.models import mobilenet_v2_tiny, mobilenet_v3_035, resnet18
from netaug_fx.passes.channels import Reason
from netaug_fx.passes.graph import KINDS, Group, dependency_graph, find_groups, find_pins, module_of
from netaug_fx.passes.infer import Analysis
from tests.passes.tied import Tied
from tests.passes.watching import Apply, analysed

Found = tuple[nn.Module, Analysis, dict[str, Group]]


def found_in(model: nn.Module, *inputs: Tensor) -> Found:
    analysis = analysed(model, *inputs)
    return model, analysis, {group.name: group for group in find_groups(model, analysis).values()}


@pytest.fixture(scope="module")
def mobilenet() -> Found:
    return found_in(mobilenet_v2_tiny(num_classes=10), torch.rand(2, 3, 64, 64))


@pytest.fixture(scope="module")
def resnet() -> Found:
    return found_in(resnet18(num_classes=10), torch.rand(2, 3, 32, 32))


def test_inverted_residuals_have_one_inner_group_a_block(mobilenet: Found) -> None:
    _, _, groups = mobilenet
    inner = [name for name, group in groups.items() if group.kind == "inner"]
    assert inner == [f"blocks.{k}.body.expand.conv" for k in range(1, 17)]
    stream = [name for name, group in groups.items() if group.kind == "stream"]
    assert [stream[0], stream[-1]] == ["stem.conv", "head.conv.conv"]
    assert [groups[name].width for name in stream] == [16, 8, 8, 16, 24, 32, 56, 112, 448]
    expand = groups["blocks.2.body.expand.conv"]
    assert expand.writers == ("blocks.2.body.expand.conv",)
    assert expand.readers == ("blocks.2.body.project.conv",)
    assert "blocks.2.body.depthwise.conv" in expand.layers


def test_residual_nets_have_one_stream_a_stage(resnet: Found) -> None:
    _, _, groups = resnet
    assert {name for name, group in groups.items() if group.kind == "inner"} == {
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)
    }
    assert [groups[name].width for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2")] == [
        64, 128, 256, 512,
    ]  # fmt: skip
    assert set(groups["layer2.0.conv2"].writers) == {"layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"}
    assert "fc" in groups["layer4.0.conv2"].readers


def test_groups_come_in_the_order_in_which_they_are_written(resnet: Found) -> None:
    model, analysis, groups = resnet
    order = list(dict.fromkeys(path for paths in analysis.writers.values() for path in paths))
    assert [order.index(name) for name in groups] == sorted(order.index(name) for name in groups)
    assert all(group.choices == (group.width,) for group in groups.values()), "before planning"
    assert {group.kind for group in groups.values()} == set(KINDS)
    paths = {path for path, _ in model.named_modules()}
    assert all({*group.writers, *group.readers, *group.layers} <= paths for group in groups.values())


def test_two_widths_of_one_module_have_names_of_their_own() -> None:
    def two(m: Apply, data: Tensor) -> Tensor:
        return ((data @ m.a).relu() @ m.b).relu() @ m.c  # type: ignore[no-any-return]

    _, _, groups = found_in(nn.Sequential(Apply(two, a=(3, 6), b=(6, 5), c=(5, 2))), torch.rand(4, 3))
    assert [(name, group.width) for name, group in groups.items()] == [("0", 6), ("0#2", 5)]
    _, _, alone = found_in(Apply(two, a=(3, 6), b=(6, 5), c=(5, 2)), torch.rand(4, 3))
    assert list(alone) == ["(model)", "(model)#2"]


def test_a_width_that_nothing_sums_over_is_no_group() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Apply(lambda _, data: data.mean(1, keepdim=True)), nn.Linear(1, 2))
    _, analysis, groups = found_in(model, torch.rand(4, 3))
    assert groups == {}
    assert next(iter(analysis.mixing)).module == "1"


def test_a_width_without_a_writer_is_named_after_a_layer_that_holds_it() -> None:
    model = nn.Sequential(Apply(lambda m, data: data.sum(1, keepdim=True) * m.scale, scale=(6,)), nn.Linear(6, 2))
    _, _, groups = found_in(model, torch.rand(4, 3))
    assert [(g.name, g.writers, g.readers) for g in groups.values()] == [("0", (), ("1",))]


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, data: Tensor) -> Tensor:
        return data + self.b(self.a(data).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("count", "kind"), [(1, "stream"), (2, "inner")])
def test_only_what_is_repeated_is_a_block(count: int, kind: str) -> None:
    units = [Unit() for _ in range(count)]
    _, _, groups = found_in(nn.Sequential(nn.Linear(3, 4), *units, nn.Linear(4, 2)), torch.rand(5, 3))
    assert groups["0"].kind == "stream"
    assert groups["1.a"].kind == kind


def test_blocks_inside_blocks_count_as_their_outermost() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.units, self.out = nn.Linear(3, 4), nn.Sequential(Unit(), Unit()), nn.Linear(4, 3)

        def forward(self, data: Tensor) -> Tensor:
            return data + self.out(self.units(self.into(data)))  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Linear(2, 3), Outer(), Outer(), nn.Linear(3, 2))
    _, _, groups = found_in(model, torch.rand(5, 2))
    assert {groups[name].kind for name in ("1.into", "1.units.0.a")} == {"inner"}
    assert groups["0"].kind == "stream"


def test_channels_that_a_gate_also_writes_stay_inner() -> None:
    """Squeeze-and-excite: the expanded channels of an inverted block are written by two layers."""
    model = mobilenet_v3_035()
    _, _, groups = found_in(model, torch.rand(2, 3, 64, 64))
    expanded = groups["blocks.3.body.expand.conv"]
    assert len(expanded.writers) > 1
    assert expanded.kind == "inner"


def test_tied_tensors_count_their_layers_and_readers_once() -> None:
    _, _, groups = found_in(Tied(), torch.zeros(2, 5, dtype=torch.int64))
    assert [(g.name, g.readers, g.layers) for g in groups.values()] == [("table", ("head",), ("table", "head"))]


# -- pins ------------------------------------------------------------------------------------------------------------


def test_pins_name_every_dimension_that_stays(mobilenet: Found) -> None:
    model, analysis, _ = mobilenet
    pins = {(pin.tensor, pin.dim): pin for pin in find_pins(analysis, {})}
    assert pins["stem.conv.weight", 1].reason == "it is a dimension of the model's input"
    kernel = pins["stem.conv.weight", 2]
    assert (kernel.reason, kernel.op, kernel.module) == ("it is a kernel size", "aten.convolution.default", "stem.conv")
    assert kernel.width == 3
    file, _, line = kernel.location.rpartition(":")
    assert "models" in file
    assert line.isdigit()
    assert all(pin.reason for pin in pins.values())
    growing = {tensor for tensor, _ in model.named_parameters()} - {tensor for tensor, _ in pins}
    assert "blocks.2.body.expand.norm.weight" in growing


def test_pins_of_free_widths_have_the_reason_given() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    analysis = analysed(model, torch.rand(4, 3))
    (var,) = find_groups(model, analysis)
    assert ("0.bias", 0) not in {(pin.tensor, pin.dim) for pin in find_pins(analysis, {})}
    pins = {(pin.tensor, pin.dim): pin.reason for pin in find_pins(analysis, {var: Reason("not today")})}
    assert pins["0.bias", 0] == pins["0.weight", 0] == pins["1.weight", 1] == "not today"


# -- the networkx graph ----------------------------------------------------------------------------------------------


def test_the_graph_is_bipartite_and_says_dimension_and_role(mobilenet: Found) -> None:
    model, analysis, groups = mobilenet
    graph = dependency_graph(analysis, find_groups(model, analysis))
    assert {node[0] for node in graph} == {"tensor", "group"}
    assert nx.is_bipartite(graph.to_undirected())
    assert {node[1] for node in graph if node[0] == "group"} == set(groups)
    assert graph.nodes["tensor", "stem.conv.weight"] == {"shape": (16, 3, 3, 3), "module": "stem.conv"}
    assert graph.nodes["group", "stem.conv"] == {"kind": "stream", "width": 16}
    assert graph.edges[("tensor", "stem.conv.weight"), ("group", "stem.conv")] == {"dim": 0, "role": "out"}
    reader = groups["stem.conv"].readers[-1]
    assert graph.edges[("tensor", f"{reader}.weight"), ("group", "stem.conv")] == {"dim": 1, "role": "in"}
    assert graph.edges[("tensor", "stem.norm.bias"), ("group", "stem.conv")] == {"dim": 0, "role": ""}
    assert module_of("stem.norm.bias") == "stem.norm"
    assert module_of("bias") == ""
