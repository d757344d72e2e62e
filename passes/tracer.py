"""The torch.fx tracer of one forward: values of the example decide where the code goes, and guards remember it.

In: a module and the arguments of one call of it. Out: a graph whose inputs are the forward's parameters. Plain torch.fx
cannot follow a forward that asks whether an optional argument is there, how many items a list has, or how large an
image is; here such questions are answered from the example, and each answer leaves a guard in the graph
(``netaug_fx.guards``). Numbers stay symbolic, so that sizes are still followed.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.fx.node import map_arg
from torch.fx.proxy import Proxy

from netaug_fx.guards import expect

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of one call of a module's forward."""

_FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "arange", "linspace", "eye", "tensor", "as_tensor")
_OF_DTYPES = ("finfo", "iinfo")
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n([^\n]*)')
_OWN = (os.path.dirname(torch.__file__), os.path.abspath(__file__))
_PLAIN = (type(None), bool, str, torch.dtype, torch.device, torch.memory_format)
_DEFAULTS = (type(None), bool, int, float, str)


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
        """One placeholder a parameter; those that only decide the way are handed over as they are, under a guard."""
        if self.call is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        args, kwargs = self.call
        signature = inspect.signature(inspect.unwrap(root_fn))
        bound = signature.bind(self.root, *args, **kwargs)
        bound.apply_defaults()
        _own, *parameters = signature.parameters.values()
        values = {each.name: self._argument(each, bound.arguments[each.name]) for each in parameters}
        # handed over as in the call: a decorator may look at what was given, and how
        in_order: list[Any] = []
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                in_order.extend(values[parameter.name])
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                in_order.append(values[parameter.name])
        named: dict[str, Any] = {}
        for name in kwargs:
            rest: Any = next((values[each.name] for each in parameters if each.kind is each.VAR_KEYWORD), {})
            named[name] = rest[name] if name in rest else values[name]
        return (lambda root: root_fn(root, *in_order[: len(args)], **named)), [self.root]

    def _argument(self, parameter: inspect.Parameter, value: Any) -> Any:
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
        has_default = not stars and isinstance(parameter.default, _DEFAULTS)
        default = (parameter.default,) if has_default else ()
        proxy = self.create_proxy("placeholder", stars + parameter.name, default, {})
        self.values[proxy.node] = value
        if stars == "*":
            self._guard(self.create_proxy("call_function", len, (proxy,), {}), len(value), parameter.name)
            return [self._item(proxy, index, item, f"{parameter.name}[{index}]") for index, item in enumerate(value)]
        if stars == "**":
            names = self.create_proxy("call_function", sorted, (proxy,), {})
            self._guard(names, sorted(value), f"what is given as {parameter.name}")
            return {name: self._item(proxy, name, item, name) for name, item in value.items()}
        return self._decided(proxy, value, parameter.name)

    def _item(self, proxy: Proxy, key: Any, value: Any, name: str) -> Any:
        item = self.create_proxy("call_function", operator.getitem, (proxy, key), {})
        return self._decided(item, value, name)

    def _decided(self, proxy: Proxy, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            self._guard(
                self.create_proxy("call_function", torch.is_tensor, (proxy,), {}), True, f"{name!r} being given"
            )
        if not isinstance(value, _PLAIN):
            return proxy
        self._guard(proxy, value, f"argument {name!r}")
        return value

    def create_arg(self, a: Any) -> Any:
        """An argument or result of a node; results of a class of their own (data classes, dicts) keep it."""
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            given = {each.name: self.create_arg(getattr(a, each.name)) for each in dataclasses.fields(a) if each.init}
            return self.create_node("call_function", type(a), (), given)
        if isinstance(a, dict) and type(a) not in (dict, immutable_dict):
            return self.create_node("call_function", type(a), (super().create_arg(dict(a)),), {})
        return super().create_arg(a)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """A node; but functions that were wrapped to be nodes (``torch.fx.wrap``) may hold widths, and are followed."""
        wrapped = kind == "call_function" and isinstance(target, FunctionType) and target is not expect
        if wrapped and target.__module__.partition(".")[0] not in ("torch", "builtins", "_operator", "math"):
            return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def _guard(self, proxy: Proxy, expected: Any, what: str) -> None:
        self.create_node("call_function", expect, (proxy.node, expected, what), {})

    # -- questions ---------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> Proxy:
        """Proxies whose length can be asked."""
        return _Proxy(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        """The example's answer to a condition on sizes or other plain values; never on a tensor's."""
        value = self.value_of(obj.node)
        if isinstance(value, Tensor) or value is _UNKNOWN:
            return super().to_bool(obj)
        self._guard(self.create_proxy("call_function", bool, (obj,), {}), bool(value), _condition(obj.node))
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
        self._guard(self.create_proxy("call_function", len, (obj,), {}), len(value), f"the length of {obj.node.name!r}")
        return len(value)

    def value_of(self, node: fx.Node) -> Any:
        """What a node gives on the example, computed when it is asked for; ``_UNKNOWN`` without an example."""
        if node not in self.values:
            inputs = [self.value_of(each) for each in node.all_input_nodes]
            unknown = self.call is None or any(value is _UNKNOWN for value in inputs)
            self.values[node] = _UNKNOWN if unknown else self._evaluate(node)
        return self.values[node]

    def _evaluate(self, node: fx.Node) -> Any:
        args: Any = map_arg(node.args, lambda each: self.values[each])
        kwargs: Any = map_arg(node.kwargs, lambda each: self.values[each])
        self.evaluating = True
        try:
            if node.op == "get_attr":
                return _attribute(self.root, str(node.target))
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            function: Any = node.target
            return function(*args, **kwargs)
        finally:
            self.evaluating = False

    # -- what is recorded --------------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Children stay calls."""
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Records a child's call; runs it where a value is asked for."""
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Records a tensor's use; hands it over where a value is asked for."""
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    @contextmanager
    def recording_factories(self) -> Iterator[None]:
        """Tensors made in the forward become nodes too, which torch.fx would fail on or keep as constants; so does what
        is asked about a data type."""
        originals = {name: getattr(torch, name) for name in (*_FACTORIES, *_OF_DTYPES)}

        def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                known = function.__name__ in _OF_DTYPES and not any(isinstance(each, Proxy) for each in args)
                if self.evaluating or known:
                    return function(*args, **kwargs)
                return self.create_proxy("call_function", function, args, kwargs)

            return record

        for name, function in originals.items():
            setattr(torch, name, recorded(function))
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(torch, name, function)


class _Unknown:
    pass


_UNKNOWN = _Unknown()


class _Proxy(Proxy):
    """Has a length, and is written into by ``+=`` and its like, as a tensor is."""

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


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _condition(node: fx.Node) -> str:
    """A condition in the user's own words."""
    places = [place for place in _PLACE.findall(node.stack_trace or "") if not place[0].startswith(_OWN)]
    file, line, code = places[-1] if places else ("", "", node.name)
    return f"the condition in {code.strip()!r} ({os.path.basename(file)}:{line})"


def drop_assertions(graph: fx.Graph) -> None:
    """Assertions guard the sizes that the code was written for; wider ones are guarded by ``check``."""
    asserts: Sequence[Any] = (torch._assert, fx.proxy.assert_fn)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in asserts:
            graph.erase_node(node)
