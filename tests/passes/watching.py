"""Runs a function under the rules alone, and asks what they made of its operands and results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Product, Type, Var
from netaug_fx.passes.context import Context, Dims
from netaug_fx.passes.infer import Analysis, infer
from netaug_fx.passes.recorder import RuleMode
from netaug_fx.passes.rules import tensor_leaves


@dataclass(frozen=True)
class Watched:
    """The types of operands and results, and the facts that the rules noted."""

    operands: list[Dims]
    results: list[Dims]
    context: Context
    notes: dict[str, Type]

    @property
    def result(self) -> Dims:
        """The types of the only result."""
        (result,) = self.results
        return result

    def reads(self, operand: int) -> set[int]:
        """Dimensions of an operand that a weight sums over."""
        return {dim for name, dim in self.context.readers if name == f"t{operand}"}

    def writes(self, operand: int) -> set[int]:
        """Dimensions of an operand that become channels."""
        return {dim for name, dim in self.context.writers if name == f"t{operand}"}


def watch(function: Callable[..., Any], *operands: Tensor) -> Watched:
    """Every dimension of every operand is a width of its own; an ``nn.Parameter`` is a weight, others activations."""
    context = Context(module="block")
    notes: dict[str, dict[str, Type]] = {}
    typed: list[Dims] = []
    for number, operand in enumerate(operands):
        name = f"t{number}"
        dims = [channels.fresh(int(n), frozenset({(name, d)})) for d, n in enumerate(operand.shape)]
        context.set_dims(operand, dims, weight=isinstance(operand, nn.Parameter))
        context.name(operand, name)
        typed.append(dims)
    mode = RuleMode(context, notes, {"block": ("groups", "num_groups", "normalized_shape", "shifts")})
    mode.path.append("block")
    with torch.no_grad(), mode:
        result = function(*operands)
    return Watched(typed, [context.dims(t) for t in tensor_leaves(result)], context, notes.get("block", {}))


def x(*shape: int) -> Tensor:
    """An activation."""
    return torch.rand(*shape)


def w(*shape: int) -> nn.Parameter:
    """A weight."""
    return nn.Parameter(torch.rand(*shape))


def tied(*types: Type) -> bool:
    """Whether types are one and the same, whatever it is."""
    first, *others = map(channels.resolve, types)
    return all(other == first for other in others)


def free(t: Type) -> bool:
    """Whether a type is one width that may grow as it likes."""
    return isinstance(channels.resolve(t), Var)


def parts(t: Type) -> list[int]:
    """The sizes of a concatenation's parts."""
    t = channels.resolve(t)
    return [part.size for part in t.parts] if isinstance(t, channels.Concat) else [t.size]


def factors(t: Type) -> tuple[Type, ...]:
    """The factors of a product."""
    t = channels.resolve(t)
    return t.factors if isinstance(t, Product) else (t,)


def why(t: Type) -> str:
    """The reason of a pinned type, with its operator; empty if it is free."""
    if next(channels.variables(t), None) is not None:
        return ""
    reason = channels.pin_reason(t)
    return f"{reason.text} [{reason.op}]" if reason else "(no reason)"


class Apply(nn.Module):
    """A forward given as a function of the module and its inputs, with parameters of the given shapes."""

    def __init__(self, function: Callable[..., Any], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape)))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def analysed(model: nn.Module, *inputs: Tensor) -> Analysis:
    """What ``infer`` finds out about a model from positional inputs."""
    return infer(model, (inputs, {}))
