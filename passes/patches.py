"""What is patched in torch while one forward is traced, in the thread that traces and for as long as it does.

Tensors that the forward makes become nodes, and so does what it asks about data types. Whatever asks for, or changes,
the modes of gradients and precision is noticed: a graph would not repeat it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx.proxy import Proxy, TraceError

from netaug_fx.passes.tracer import OwnForward

_FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "arange", "linspace", "eye", "tensor", "as_tensor")
_OF_DTYPES = ("finfo", "iinfo")
_MODES = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled")
_lock = threading.Lock()  # two traces at once would put back each other's patches


@contextmanager
def patched(tracer: OwnForward) -> Iterator[None]:
    """Patches torch for one trace."""
    autocast = torch.amp.autocast_mode.autocast
    places = [(torch, name) for name in (*_FACTORIES, *_OF_DTYPES, *_MODES)] + [(autocast, "__enter__")]
    with _lock:
        originals = [(place, name, getattr(place, name)) for place, name in places]
        own = threading.get_ident()
        for place, name, function in originals:
            setattr(place, name, _patch(tracer, own, name, function))
        try:
            yield
        finally:
            for place, name, function in originals:
                setattr(place, name, function)


def _patch(tracer: OwnForward, own: int, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def instead(*args: Any, **kwargs: Any) -> Any:
        known = name in _OF_DTYPES and not any(isinstance(each, Proxy) for each in args)
        if threading.get_ident() != own or tracer.evaluating or known:
            return function(*args, **kwargs)
        if name in _MODES or name == "__enter__":
            raise TraceError(
                "it asks for or changes the mode of gradients or precision, which a graph would not repeat"
            )
        return tracer.create_proxy("call_function", function, args, kwargs)

    return instead
