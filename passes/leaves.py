"""Leaves: modules that are not looked into, because a rule of the user's states what they do.

A watcher (of ``infer`` or of ``check``) looks away while such a module runs and takes its call as one operator. A
forward that cannot run on fake tensors is stood in for by the function that came with the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from netaug_fx.passes.rules import LeafRule, lookup_leaf, tensor_leaves


@dataclass(frozen=True)
class LeafCall:
    """Stands in the record of a run where an operator would: one call of a leaf of the named class."""

    name: str
    overloadpacket: None = None  # what counts or moves elements by operator asks for it, and knows nothing of leaves

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, rule: LeafRule) -> LeafCall:
        """The call of any module that the rule applies to, be it the model's or the supernet's."""
        return cls(rule.cls.__qualname__)


class Watcher(Protocol):
    """What runs along with a model and looks away inside leaves."""

    def enter_leaf(self) -> None:
        """A leaf starts to run."""

    def leave_leaf(self, rule: LeafRule, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A leaf has run."""


class Removable(Protocol):
    """A hook's handle, or a stand-in."""

    def remove(self) -> None:
        """Undoes it."""


def follow_leaves(model: nn.Module, watcher: Watcher | None = None) -> list[Removable]:
    """Tells ``watcher`` of each outermost leaf's calls, and puts stand-ins in.

    Returns:
        What the caller has to remove.
    """
    found: list[Removable] = []
    for module, rule in _outermost(model):
        if rule.fake is not None:
            found.append(_StandIn(module, rule.fake))
        if watcher is not None:
            found += _hooks(module, rule, watcher)
    return found


@contextmanager
def leaves_followed(model: nn.Module, watcher: Watcher | None = None) -> Iterator[None]:
    """``follow_leaves``, undone at the end."""
    followed = follow_leaves(model, watcher)
    try:
        yield
    finally:
        for each in followed:
            each.remove()


def location_of(module: nn.Module) -> str:
    """File and line of a module's forward, where it is Python."""
    code = getattr(type(module).forward, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def _outermost(model: nn.Module) -> Iterator[tuple[nn.Module, LeafRule]]:
    """Leaves that lie in no other leaf, each once."""
    seen: set[int] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if (rule := lookup_leaf(module)) is not None:
            yield module, rule
        else:
            stack.extend(module.children())


class _StandIn:
    """Takes the place of a module's forward for calls on fake tensors."""

    def __init__(self, module: nn.Module, fake: Callable[..., Any]) -> None:
        self.module, self.fake, self.real = module, fake, module.forward
        self.before = module.__dict__.get("forward")
        module.__dict__["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        faked = any(isinstance(tensor, FakeTensor) for tensor in tensor_leaves((args, kwargs)))
        return self.fake(self.module, *args, **kwargs) if faked else self.real(*args, **kwargs)

    def remove(self) -> None:
        """Puts back what was there."""
        del self.module.__dict__["forward"]
        if self.before is not None:
            self.module.__dict__["forward"] = self.before


def _hooks(module: nn.Module, rule: LeafRule, watcher: Watcher) -> list[Removable]:
    def enter(_module: nn.Module, _args: Any) -> None:
        watcher.enter_leaf()

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        watcher.leave_leaf(rule, module, args, kwargs, output)

    return [
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]
