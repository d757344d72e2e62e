"""Trace: one torch.fx graph per module forward, its children left as calls.

In: a module. Out: its graph, or the reason why torch.fx cannot follow its forward; such a module stays opaque, is still
analysed (``infer`` watches operators, not Python), and is not rewritten. Tracing each forward by itself keeps the
hierarchy, hooks and training flags that a whole-model trace would bake in.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from netaug_fx.passes.rules import lookup_leaf
from netaug_fx.passes.source_scan import STORES_ATTRIBUTE, names_used

# Containers and wrappers of torch.nn that pass sizes on from their attributes; all others hold no width-bearing
# integers but those that `elastic.INTEGER_ATTRIBUTES` follows, and stay untouched.
_TRACED_TORCH_CLASSES = (nn.Unflatten, nn.Flatten)

_FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "arange", "linspace", "eye", "tensor", "as_tensor")


class _OwnForward(fx.Tracer):
    """Records one module's forward; every child call is a node of its own."""

    proxy_buffer_attributes = True  # so that a buffer can be sliced by a size

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)
        self.record_stack_traces = True

    @contextmanager
    def recording_factories(self) -> Iterator[None]:
        """Tensors made in the forward become nodes too; torch.fx would fail on them or keep them as constants."""
        originals = {name: getattr(torch, name) for name in _FACTORIES}

        def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: self.create_proxy("call_function", function, args, kwargs)

        for name, function in originals.items():
            setattr(torch, name, recorded(function))
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(torch, name, function)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@dataclass(frozen=True)
class ForwardTrace:
    """The graph of one forward in one training mode, or why there is none."""

    graph: fx.Graph | None
    failure: str = ""


def is_traced(module: nn.Module) -> bool:
    """Whether a module's forward is worth tracing: the user's own, and torch.nn's with sizes as attributes; no leaf."""
    if isinstance(module, torch.jit.ScriptModule) or lookup_leaf(module) is not None:
        return False
    return not type(module).__module__.startswith("torch.nn.") or isinstance(module, _TRACED_TORCH_CLASSES)


def trace(module: nn.Module) -> ForwardTrace:
    """Traces ``module.forward`` in the module's present training mode.

    Returns:
        The graph, whose ``call_module`` nodes are the children's calls and whose ``get_attr`` nodes are parameters
        and buffers; or the failure in words.
    """
    if isinstance(module, fx.GraphModule):
        return ForwardTrace(_copy_graph(module.graph))
    if STORES_ATTRIBUTE in names_used(module):
        return ForwardTrace(None, "it assigns attributes, which a graph would not repeat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = random.getstate()
        try:
            tracer = _OwnForward()
            with tracer.recording_factories():
                graph = tracer.trace(module)
        except Exception as error:  # user code meets a Proxy: any exception at all means "cannot be followed"
            return ForwardTrace(None, f"torch.fx cannot follow it: {type(error).__name__}: {_first_line(error)}")
    if random.getstate() != before:
        return ForwardTrace(None, "its forward draws from Python's random module, which a graph would freeze")
    if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        return ForwardTrace(None, "its forward makes constant tensors that a graph would freeze")
    if any(node.op == "placeholder" and str(node.target).startswith("*") for node in graph.nodes):
        return ForwardTrace(None, "its forward takes a variable number of arguments")
    return ForwardTrace(graph)


def _copy_graph(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    output = copy.graph_copy(graph, {})
    copy.output(output)
    return copy


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def same_code(a: fx.Graph, b: fx.Graph) -> bool:
    """Whether two graphs are the same program (used to see whether a forward depends on ``self.training``)."""
    return _signature(a) == _signature(b)


def _signature(graph: fx.Graph) -> list[tuple[str, Any, str, str]]:
    numbers = {node: index for index, node in enumerate(graph.nodes)}

    def spell(argument: Any) -> str:
        return str(fx.node.map_arg(argument, lambda node: f"%{numbers[node]}"))

    return [(node.op, node.target, spell(node.args), spell(dict(node.kwargs))) for node in graph.nodes]
