"""Whether two programs are the same graph: same operators, same attributes, wired the same way.

In: exported programs, traced modules or ONNX files. Out: ``LabelledGraph``s, and ``difference`` between two of them in
words. Values of weights are no part of a graph: a vertex for a weight is labelled with its shape and type.

Two graphs written down in the same order are compared vertex by vertex, in linear time. Only where that fails, colours
are refined along the edges (equal colours are a necessary condition), and networkx decides on what is left.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from netaug_fx.passes.trace import is_traced, trace

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Vertex:
    """One operator, input, weight or output.

    Attributes:
        label: Everything that has to agree: operator, attributes, shape.
        inputs: (slot, index of an earlier vertex) for each value it reads.
        title: What to call it in a message.
    """

    label: Hashable
    inputs: tuple[tuple[int, int], ...]
    title: str = field(compare=False, default="")


@dataclass(frozen=True)
class LabelledGraph:
    """Vertices in topological order."""

    vertices: tuple[Vertex, ...]

    def to_networkx(self) -> nx.DiGraph[int]:
        """The graph for networkx: nodes with ``label`` and ``title``, edges with ``slots``, all a pair is joined by."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        for index, vertex in enumerate(self.vertices):
            graph.add_node(index, label=vertex.label, title=vertex.title)
            slots = defaultdict[int, set[int]](set)
            for slot, source in vertex.inputs:
                slots[source].add(slot)
            graph.add_edges_from((source, index, {"slots": frozenset(used)}) for source, used in slots.items())
        return graph


def difference(actual: LabelledGraph, expected: LabelledGraph) -> str | None:
    """None if the graphs are isomorphic with equal labels; otherwise the first place where they part, in words."""
    if actual.vertices == expected.vertices:
        return None
    colours = [_colours(actual), _colours(expected)]
    if Counter(colours[0]) == Counter(colours[1]) and _isomorphic(actual, expected, colours):
        return None
    return _first_difference(actual, expected)


def _first_difference(actual: LabelledGraph, expected: LabelledGraph) -> str:
    pairs = zip(actual.vertices, expected.vertices, strict=False)
    index = next(
        (index for index, (ours, theirs) in enumerate(pairs) if ours != theirs),
        min(len(actual.vertices), len(expected.vertices)),
    )
    found, wanted = (
        graph.vertices[index] if index < len(graph.vertices) else Vertex("nothing", (), "the end")
        for graph in (actual, expected)
    )
    sizes = f"{len(actual.vertices)} vertices, {len(expected.vertices)} expected; "
    sizes = "" if len(actual.vertices) == len(expected.vertices) else sizes
    if found.label == wanted.label:
        return f"{sizes}{found.title} reads other values than in the original"
    return f"{sizes}{found.title} is {_spelled(found.label)}, expected {_spelled(wanted.label)} ({wanted.title})"


def _spelled(label: Hashable) -> str:
    text = " ".join(str(part) for part in label) if isinstance(label, tuple) else str(label)
    return text if len(text) <= 200 else text[:197] + "..."


def _colours(graph: LabelledGraph) -> list[int]:
    """For each vertex a hash of all that flows into it and out of it."""
    before: list[int] = []
    for vertex in graph.vertices:
        before.append(hash((vertex.label, tuple((slot, before[source]) for slot, source in vertex.inputs))))
    readers: list[list[tuple[int, int]]] = [[] for _ in graph.vertices]
    for index, vertex in enumerate(graph.vertices):
        for slot, source in vertex.inputs:
            readers[source].append((slot, index))
    after = [0] * len(graph.vertices)
    for index in reversed(range(len(graph.vertices))):
        read_by = sorted((slot, after[reader]) for slot, reader in readers[index])
        after[index] = hash((before[index], tuple(read_by)))
    return after


def _isomorphic(a: LabelledGraph, b: LabelledGraph, colours: list[list[int]]) -> bool:
    """Tries to pair vertices of equal colour in their order; asks networkx where that does not fit."""
    places: list[dict[int, list[int]]] = []
    for side in colours:
        places.append(defaultdict(list))
        for index, colour in enumerate(side):
            places[-1][colour].append(index)
    paired = {
        ours: theirs for colour in places[0] for ours, theirs in zip(places[0][colour], places[1][colour], strict=True)
    }
    if all(
        b.vertices[paired[index]].label == vertex.label
        and b.vertices[paired[index]].inputs == tuple((slot, paired[source]) for slot, source in vertex.inputs)
        for index, vertex in enumerate(a.vertices)
    ):
        return True
    left, right = a.to_networkx(), b.to_networkx()
    for graph, side in zip((left, right), colours, strict=True):
        nx.set_node_attributes(graph, dict(enumerate(side)), "colour")
    return bool(
        nx.is_isomorphic(
            left,
            right,
            node_match=lambda x, y: x["colour"] == y["colour"] and x["label"] == y["label"],
            edge_match=lambda x, y: x["slots"] == y["slots"],
        )
    )


# -- torch.export and torch.fx ---------------------------------------------------------------------


def from_program(program: ExportedProgram) -> LabelledGraph:
    """The graph of an exported program; weights keep their names, since each belongs to one place in the state_dict."""
    signature = program.graph_signature
    roles: dict[str, Hashable] = {}
    for spec in signature.input_specs:
        value = program.constants.get(spec.target or "") if spec.kind.name == "CONSTANT_TENSOR" else None
        name = getattr(spec.arg, "name", "")
        roles[name] = (spec.kind.name, spec.target, _digest(value) if isinstance(value, Tensor) else "")
    outputs = tuple((spec.kind.name, spec.target) for spec in signature.output_specs)

    def label(node: fx.Node) -> Hashable:
        return roles.get(node.name, ()) if node.op == "placeholder" else outputs if node.op == "output" else ()

    return LabelledGraph(tuple(_fx_vertices(program.graph, label)))


def from_modules(model: nn.Module) -> LabelledGraph:
    """Every module's own forward as a torch.fx graph, one after the other, for a model that cannot be exported.

    A forward that torch.fx cannot follow stands as one vertex: its class, or the code of the instance's own forward.
    """
    vertices: list[Vertex] = []
    for path, module in model.named_modules():
        if not is_traced(module):
            vertices.append(Vertex(("module", path, _class_name(module), module.extra_repr()), (), path))
            continue
        traced = trace(module)
        if traced.graph is None:
            forward = getattr(module.forward, "__func__", module.forward)
            vertices.append(
                Vertex(("opaque", path, _class_name(module), _spell(forward), module.extra_repr()), (), path)
            )
            continue
        start = len(vertices)
        for vertex in _fx_vertices(traced.graph, lambda node, path=path: path):  # type: ignore[misc]
            moved = tuple((slot, source + start) for slot, source in vertex.inputs)
            vertices.append(Vertex(vertex.label, moved, f"{path or 'the model'}: {vertex.title}"))
    return LabelledGraph(tuple(vertices))


def _fx_vertices(graph: fx.Graph, extra: Callable[[fx.Node], Hashable]) -> Iterable[Vertex]:
    index = {node: number for number, node in enumerate(graph.nodes)}
    order = _order_of_mutations(graph)
    for node in graph.nodes:
        read: list[tuple[int, int]] = []

        def mark(argument: fx.Node, read: list[tuple[int, int]] = read) -> str:
            read.append((len(read), index[argument]))
            return "_"

        arguments = fx.node.map_arg((node.args, node.kwargs), _Marker(mark))
        read.extend((-1, index[former]) for former in order.get(node, ()))
        # The name of an argument is no part of the program; that of a call is what it calls.
        target = "" if node.op in ("placeholder", "output") else _target(node)
        label = (node.op, target, _spell(arguments), _value(node.meta.get("val")), extra(node))
        yield Vertex(label, tuple(read), _title(node))


class _Marker:
    """``map_arg`` with results that print as a placeholder instead of as nodes."""

    def __init__(self, mark: Callable[[fx.Node], str]) -> None:
        self.mark = mark

    def __call__(self, node: fx.Node) -> str:
        return self.mark(node)


def _order_of_mutations(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Where a value is written in place, those who use it come in an order: each user and the one before it."""
    order: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            for source in node.all_input_nodes:
                users = list(source.users)
                for former, later in itertools.pairwise(users):
                    order[later].append(former)
    return order


def _target(node: fx.Node) -> str:
    owner = node.graph.owning_module
    if node.op == "get_attr" and isinstance(owner, nn.Module):
        value: Any = owner
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        if isinstance(value, fx.GraphModule):
            inner = LabelledGraph(tuple(_fx_vertices(value.graph, lambda _: ())))
            return str([(vertex.label, vertex.inputs) for vertex in inner.vertices])
    return str(node.target) if isinstance(node.target, (str, torch._ops.OpOverload)) else _spell(node.target)


def _title(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    path = re.sub(r"^(L\['self'\]\.?)?(model\.?)?", "", path)
    name = str(node.name).removeprefix("p_model_").removeprefix("b_model_")
    return f"{name} in {path}" if path else name


def _value(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return (tuple(str(size) for size in value.shape), str(value.dtype))
    if isinstance(value, (tuple, list)):
        return tuple(_value(item) for item in value)
    return str(value)


def _spell(value: Any) -> str:
    """A value in words that two equal programs share: no memory addresses, tensors by their digest."""
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_spell(item) for item in value)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_spell(item)}' for key, item in value.items())}}}"
    if callable(value) and hasattr(value, "__qualname__"):
        code = getattr(value, "__code__", None)
        return f"{value.__module__}.{value.__qualname__}" + (f"#{_hash(code.co_code)}" if code else "")
    return _ADDRESS.sub("", repr(value))


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} {_hash(data)}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# -- ONNX ------------------------------------------------------------------------------------------


def from_onnx(model: str | Path | onnx.ModelProto) -> LabelledGraph:
    """The graph of an ONNX model: nodes with attributes; weights by shape and type, integers by value."""
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    vertices: list[Vertex] = []
    versions = sorted((entry.domain, entry.version) for entry in proto.opset_import)
    vertices.append(Vertex(("opsets", tuple(versions)), (), "the opsets"))
    for function in proto.functions:
        owner = len(vertices)
        vertices.append(Vertex(("function", function.domain, function.name), (), f"function {function.name}"))
        scope = {name: _add(vertices, ("argument", slot), [], name) for slot, name in enumerate(function.input)}
        _add_nodes(vertices, function.node, scope, owner)
        _add(vertices, ("results",), [scope[name] for name in function.output], f"results of {function.name}")
    _add_graph(vertices, proto.graph, {}, None)
    return LabelledGraph(tuple(vertices))


def _add(vertices: list[Vertex], label: Hashable, sources: Iterable[int], title: str) -> int:
    vertices.append(Vertex(label, tuple(enumerate(sources)), title))
    return len(vertices) - 1


def _add_graph(vertices: list[Vertex], graph: onnx.GraphProto, outer: Mapping[str, int], owner: int | None) -> None:
    scope = dict(outer)
    for slot, entry in enumerate(graph.input):
        scope[entry.name] = _add(vertices, ("input", slot, _type_of(entry)), [], f"input {entry.name}")
    for tensor in graph.initializer:
        scope[tensor.name] = _add(vertices, ("weight", *_contents(tensor)), [], f"weight {tensor.name}")
    _add_nodes(vertices, graph.node, scope, owner)
    outputs = [scope[entry.name] for entry in graph.output]
    _add(vertices, ("outputs", tuple(map(_type_of, graph.output))), outputs, "the outputs")


def _add_nodes(
    vertices: list[Vertex], nodes: Iterable[onnx.NodeProto], scope: dict[str, int], owner: int | None
) -> None:
    for node in nodes:
        attributes = sorted((entry.name, _attribute(entry)) for entry in node.attribute)
        # An input left out has an empty name: its slot stays free.
        inputs = [(slot, scope[name]) for slot, name in enumerate(node.input) if name]
        inputs += [(-1, owner)] if owner is not None else []
        index = len(vertices)
        label = (node.domain, node.op_type, tuple(attributes), len(node.output))
        vertices.append(Vertex(label, tuple(inputs), f"{node.op_type} {node.name}"))
        for entry in node.attribute:
            for child in (*([entry.g] if entry.type == onnx.AttributeProto.GRAPH else []), *entry.graphs):
                _add_graph(vertices, child, scope, index)
        for slot, name in enumerate(node.output):
            # Results of one node are told apart by a vertex each, where there are several.
            several = len(node.output) > 1
            scope[name] = _add(vertices, ("result", slot), [index], name) if several else index


def _attribute(entry: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        return f"{array.dtype} {array.shape} {_hash(array.tobytes())}"
    if isinstance(value, onnx.GraphProto) or entry.graphs:
        return "graph"  # its nodes are vertices of their own
    return str(list(value) if not isinstance(value, (int, float, bytes)) else value)


def _dtype_name(number: int) -> str:
    return onnx.helper.tensor_dtype_to_string(number).removeprefix("TensorProto.")


def _contents(tensor: onnx.TensorProto) -> tuple[str, ...]:
    dtype = _dtype_name(tensor.data_type)
    array = numpy_helper.to_array(tensor) if dtype.startswith(("INT", "UINT", "BOOL")) else None
    values = "" if array is None else _hash(np.ascontiguousarray(array).tobytes())
    return (dtype, str(list(tensor.dims)), values)


def _type_of(entry: onnx.ValueInfoProto) -> str:
    kind = entry.type.tensor_type
    sizes = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    return f"{_dtype_name(kind.elem_type)} {sizes}"
