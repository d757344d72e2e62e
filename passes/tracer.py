"""The torch.fx tracer of one forward: values of the example decide where the code goes, and guards remember it.

In: a module and the arguments of one call of it. Out: a graph whose inputs are the forward's parameters. Plain torch.fx
cannot follow a forward that asks whether an optional argument is there, how many items a list has, or how large an
image is; here such questions are answered from the example, and each answer leaves a guard in the graph
(``netaug_fx.guards``). Numbers stay symbolic, so that sizes are still followed. What a graph would not repeat (modes of
gradients and precision) raises, and the forward stays opaque.
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.fx.node import map_arg
from torch.fx.proxy import Proxy, TraceError

from netaug_fx.guards import expect, structure

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of one call of a module's forward."""

_PLACE = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n([^\n]*)')
_OWN = (os.path.dirname(torch.__file__), os.path.abspath(__file__))
_PLAIN = (type(None), bool, str, torch.dtype, torch.device, torch.memory_format)
_OF_GRADIENTS = ("requires_grad", "grad", "grad_fn", "is_leaf")
_gradients_are_on = torch.is_grad_enabled  # the function itself, which is patched while tracing
_FOLLOWED_NOWHERE = ("torch", "builtins", "_operator", "math", "netaug_fx")


class OwnForward(fx.Tracer):
    """Records one module's forward; every child call is a node of its own.

    Args:
        call: The arguments of a call, whose values answer questions of control flow; without, such questions fail.
    """

    proxy_buffer_attributes = True  # so that a buffer can be sliced by a size
    trace_asserts = True

    def __init__(self, call: Call | None) -> None:
        super().__init__(param_shapes_constant=False)
        self.record_stack_traces = True
        self.call = call
        self.values: dict[fx.Node, Any] = {}
        self.evaluating = False

    # -- arguments ---------------------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder a parameter; each is handed over as in the call, since a decorator may look at how."""
        if self.call is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        args, kwargs = self.call
        bound = inspect.signature(inspect.unwrap(root_fn)).bind(self.root, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        _own, *parameters = bound.signature.parameters.values()
        in_order: list[Any] = []
        by_name: dict[str, Any] = {}
        for parameter in parameters:
            value = self._argument(parameter, bound.arguments[parameter.name], parameter.name in given)
            if parameter.kind is parameter.VAR_POSITIONAL:
                in_order.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                by_name |= value
            else:
                by_name[parameter.name] = value
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    in_order.append(value)
        return (lambda root: root_fn(root, *in_order[: len(args)], **{name: by_name[name] for name in kwargs})), [
            self.root
        ]

    def _argument(self, parameter: inspect.Parameter, value: Any, given: bool) -> Any:
        """What the forward is handed for a parameter: a proxy, or the value itself under a guard.

        A parameter that the call left out keeps its default, whatever that is.
        """
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
        default = () if stars or parameter.default is parameter.empty else (parameter.default,)
        proxy = self.create_proxy("placeholder", stars + parameter.name, default, {})
        self.values[proxy.node] = value
        what = f"argument {parameter.name!r}"
        if not (given or stars):
            self._guard(proxy.node, value, what)
            return value
        self._guard_structure(proxy, value, what)
        if stars == "*":
            return [self._item(proxy, index, item) for index, item in enumerate(value)]
        if stars == "**":
            return {name: self._item(proxy, name, item) for name, item in value.items()}
        return self._decided(proxy, value, what)

    def _item(self, proxy: Proxy, key: Any, value: Any) -> Any:
        item = self.create_proxy("call_function", operator.getitem, (proxy, key), {})
        return self._decided(item, value, f"argument {key!r}")

    def _decided(self, proxy: Proxy, value: Any, what: str) -> Any:
        """What only decides the way is handed over as it is."""
        if not isinstance(value, _PLAIN):
            return proxy
        self._guard(proxy.node, value, what)
        return value

    def _guard_structure(self, proxy: Proxy, value: Any, what: str) -> None:
        found = self.create_node("call_function", structure, (proxy.node,), {})
        self._guard(found, structure(value), f"what is given as {what}")

    def _guard(self, node: fx.Node, expected: Any, what: str) -> None:
        self.create_node("call_function", expect, (node, self.create_arg(expected), what), {})

    # -- questions ---------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> Proxy:
        """Proxies whose length can be asked."""
        return _Proxy(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        """The example's answer to a condition on sizes or other plain values; never on a tensor's."""
        value = self.value_of(obj.node)
        if isinstance(value, Tensor) or value is _UNKNOWN:
            return super().to_bool(obj)
        asked = self.create_node("call_function", bool, (obj.node,), {})
        self._guard(asked, bool(value), _condition(obj.node))
        return bool(value)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """As many items as the example has; a tensor's number of rows may be the batch, which is no constant."""
        numbers = range(self.length(obj))
        return iter([self.create_proxy("call_function", operator.getitem, (obj, index), {}) for index in numbers])

    def length(self, obj: Proxy) -> int:
        """The example's number of items."""
        value = self.value_of(obj.node)
        if not isinstance(value, (tuple, list)):
            list(super().iter(obj))
        asked = self.create_node("call_function", len, (obj.node,), {})
        self._guard(asked, len(value), _condition(obj.node, "the number of items"))
        return len(value)

    def value_of(self, node: fx.Node) -> Any:
        """What a node gives on the example, computed when it is asked for; ``_UNKNOWN`` without an example."""
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [each for each in top.all_input_nodes if each not in self.values]
            if top in self.values:
                stack.pop()
            elif missing:
                stack.extend(missing)
            else:
                unknown = self.call is None or any(self.values[each] is _UNKNOWN for each in top.all_input_nodes)
                self.values[stack.pop()] = _UNKNOWN if unknown else self._evaluate(top)
        return self.values[node]

    def _evaluate(self, node: fx.Node) -> Any:
        args: Any = map_arg(node.args, lambda each: self.values[each])
        kwargs: Any = map_arg(node.kwargs, lambda each: self.values[each])
        self.evaluating = True
        try:
            with torch.no_grad():
                if node.op == "get_attr":
                    return operator.attrgetter(str(node.target))(self.root)
                if node.op == "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                function: Any = node.target
                return function(*args, **kwargs)
        finally:
            self.evaluating = False

    # -- what is recorded --------------------------------------------------------------------------

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node; gradients are on while tracing, so that a forward that switches them off is noticed."""
        if not _gradients_are_on():
            raise TraceError("it switches gradients off for a part, which a graph would not repeat")
        return super().create_node(*args, **kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """A node; but functions that were wrapped to be nodes (``torch.fx.wrap``) may hold widths, and are followed."""
        if target is getattr and args[1] in _OF_GRADIENTS:
            raise TraceError(f"it asks a tensor for {args[1]}, which depends on who runs it")
        wrapped = kind == "call_function" and isinstance(target, FunctionType)
        if wrapped and target.__module__.partition(".")[0] not in _FOLLOWED_NOWHERE:
            return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def create_arg(self, a: Any) -> Any:
        """An argument or result of a node; results of a class of their own (data classes, dicts) keep it."""
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            given = {each.name: self.create_arg(getattr(a, each.name)) for each in dataclasses.fields(a) if each.init}
            return self.create_node("call_function", type(a), (), given)
        if isinstance(a, dict) and type(a) not in (dict, immutable_dict):
            return self.create_node("call_function", type(a), (super().create_arg(dict(a)),), {})
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Children stay calls."""
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Records a child's call; runs it where a value is asked for."""
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Records a tensor's use; hands it over where a value is asked for."""
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)


class _Unknown:
    pass


_UNKNOWN = _Unknown()


class _Proxy(Proxy):
    """Has a length, can be unpacked, and is written into by ``+=`` and its like, as a tensor is."""

    def __iter__(self) -> Any:
        """``q, k, v = tensor`` takes the tensor apart; shapes and tuples are unpacked as torch.fx does."""
        tracer, frame = self.tracer, inspect.currentframe()
        assert isinstance(tracer, OwnForward)
        count = _unpacked(frame.f_back if frame else None)
        if count is None:
            return tracer.iter(self)
        source = self
        is_shape = self.node.target in (getattr, "size")
        if not is_shape and isinstance(tracer.value_of(self.node), Tensor):
            source = tracer.create_proxy("call_method", "unbind", (self,), {})
        return iter([tracer.create_proxy("call_function", operator.getitem, (source, i), {}) for i in range(count)])

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __len__(self) -> int:
        tracer = self.tracer
        assert isinstance(tracer, OwnForward)
        return tracer.length(self)


def _unpacked(frame: FrameType | None) -> int | None:
    """Into how many names a frame takes a value apart (``a, b, c = value``) at this moment, if it does."""
    steps = dis.get_instructions(frame.f_code) if frame else ()
    at = (step for step in steps if frame and step.offset == frame.f_lasti and step.opname == "UNPACK_SEQUENCE")
    return next((step.arg for step in at), None)


def _condition(node: fx.Node, what: str = "the condition") -> str:
    """What was asked, with the line in the user's own code."""
    places = [place for place in _PLACE.findall(node.stack_trace or "") if not place[0].startswith(_OWN)]
    file, line, code = places[-1] if places else ("", "", node.name)
    return f"{what} in {code.strip()!r} ({os.path.basename(file)}:{line})"


def drop_assertions(graph: fx.Graph) -> None:
    """Assertions guard the sizes that the code was written for; wider ones are guarded by ``check``."""
    asserts: Sequence[Any] = (torch._assert, fx.proxy.assert_fn)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in asserts:
            graph.erase_node(node)
