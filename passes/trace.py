"""Trace: one torch.fx graph per module forward, its children left as calls.

In: a module. Out: its graph, or the reason why torch.fx cannot follow its forward; such a module stays opaque, is still
analysed (``infer`` watches operators, not Python), and is not rewritten. Tracing each forward by itself keeps the
hierarchy, hooks and training flags that a whole-model trace would bake in.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import fx, nn

from netaug_fx.passes.patches import patched
from netaug_fx.passes.rules import lookup_leaf
from netaug_fx.passes.tracer import Call, OwnForward, drop_assertions

# Containers and wrappers of torch.nn that pass sizes on from their attributes; all others hold no width-bearing
# integers but those that `elastic.INTEGER_ATTRIBUTES` follows, and stay untouched.
_TRACED_TORCH_CLASSES = (nn.Unflatten, nn.Flatten)


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


def trace(module: nn.Module, call: Call | None = None) -> ForwardTrace:
    """Traces ``module.forward`` in the module's present training mode.

    Args:
        module: The module; what its forward assigns to attributes, or adds to lists and dicts, is put back.
        call: Arguments of one call, from which questions of control flow are answered; the module may be run on them.

    Returns:
        The graph, whose ``call_module`` nodes are the children's calls and whose ``get_attr`` nodes are parameters
        and buffers; or the failure in words.
    """
    if isinstance(module, fx.GraphModule):
        return ForwardTrace(_copy_graph(module.graph))
    state, attributes = random.getstate(), _attributes(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tracer = OwnForward(call)
            tracer.traced_func_name = _name_of_forward(module)
            with torch.enable_grad(), patched(tracer):
                graph = tracer.trace(module)
        except Exception as error:  # user code meets a Proxy: any exception at all means "cannot be followed"
            return ForwardTrace(None, f"torch.fx cannot follow it: {first_line(error)}")
        finally:
            assigns = _put_back(attributes)
    return ForwardTrace(None, why) if (why := _refused(graph, state, assigns)) else ForwardTrace(graph)


def _name_of_forward(module: nn.Module) -> str:
    """The method that is called: some modules choose one of several when they are built (``self.forward = ...``)."""
    own = module.__dict__.get("forward")
    return own.__func__.__name__ if isinstance(own, MethodType) and own.__self__ is module else "forward"


def _refused(graph: fx.Graph, state: object, assigns: bool) -> str:
    """Why a graph would not do what its forward does, if so; assertions are taken out on the way."""
    if assigns:
        return "it assigns attributes, which a graph would not repeat"
    if random.getstate() != state:
        return "its forward draws from Python's random module, which a graph would freeze"
    if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        return "its forward makes constant tensors that a graph would freeze"
    drop_assertions(graph)
    return ""


_State = list[tuple[Any, Any]]
"""Tables and containers of a module and all below it, each with a copy of what it held."""


def _attributes(module: nn.Module) -> _State:
    state: _State = []
    for each in module.modules():
        tables = [each.__dict__, each._parameters, each._buffers, each._modules]
        held = [value for value in each.__dict__.values() if isinstance(value, (list, dict, set))]
        state.extend((item, item.copy()) for item in (*tables, *held))
    return state


def _put_back(state: _State) -> bool:
    """Undoes what a trace assigned or added; returns whether there was anything."""
    changed = False
    for item, before in state:
        if not _same(item, before):
            changed = True
            item.clear()
            item.extend(before) if isinstance(item, list) else item.update(before)
    return changed


def _same(item: Any, before: Any) -> bool:
    if len(item) != len(before):
        return False
    if isinstance(item, dict):
        return all(name in item and item[name] is value for name, value in before.items())
    return all(a is b for a, b in zip(item, before, strict=True))


def _copy_graph(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    output = copy.graph_copy(graph, {})
    copy.output(output)
    return copy


def first_line(error: BaseException) -> str:
    """An error in one line: its class and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
