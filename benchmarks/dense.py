"""The plain dense net of a supernet's augmented pass: the least that such a pass can cost.

In: a supernet and an assignment of widths. Out: a net of the original's classes whose modules hold plain parameters of
the assembled values, so that nothing is assembled when it runs; where a forward holds widths, it is the rewritten one
with these widths. In training mode it gives the supernet's augmented outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.assembly import PARAMETER, STATISTIC, ElasticTensor
from netaug_fx.elastic import STATE, ModuleState
from netaug_fx.passes.layout import shape
from netaug_fx.supernet import control


def dense_net(supernet: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """A plain model with the weights that ``supernet`` has at ``widths``.

    Args:
        supernet: What ``augment`` returned; it is not changed.
        widths: Width by group name; groups left out keep the target's.

    Returns:
        A copy that shares nothing with the supernet. Norms start with fresh running statistics, because the supernet
        keeps none for its wider nets: compare the two in training mode.

    Raises:
        InputError: not a supernet, or widths out of range.
    """
    assignment = control(supernet).as_widths(widths)
    dense = netaug_fx.extract(supernet)
    made: dict[int, Tensor] = {}  # tied tensors stay tied
    for elastic, plain in zip(supernet.modules(), dense.modules(), strict=True):
        state = elastic.__dict__.get(STATE)
        if not isinstance(state, ModuleState):
            continue
        with supernet.augmented(widths), torch.no_grad():  # type: ignore[operator]
            integers = {name: getattr(elastic, name) for name in state.integers}
            tensors = {tensor.name: _value(elastic, tensor, assignment) for tensor in state.tensors.values()}
            sizes = Sizes([state.size(index) for index in range(len(state.sizes))])
        for name, value in integers.items():
            setattr(plain, name, value)
        for name, value in tensors.items():
            kind = state.tensors[name].kind
            base = elastic._parameters[name] if kind == PARAMETER else elastic._buffers[name]
            if base is None or value is None:
                continue
            if id(base) not in made:
                made[id(base)] = nn.Parameter(value, requires_grad=base.requires_grad) if kind == PARAMETER else value
            setattr(plain, name, made[id(base)])
        if state.forwards:
            plain.__dict__[STATE] = sizes
            plain.__class__ = _of_rewritten_forward(type(plain), state)
    return dense


@dataclass
class Sizes:
    """What a rewritten forward asks for, at one assignment of widths."""

    values: list[int]

    def size(self, index: int) -> int:
        """The size with this number."""
        return self.values[index]


def _of_rewritten_forward(base: type[nn.Module], state: ModuleState) -> type[nn.Module]:
    """A class whose forward holds no widths of the target's, where the original's does."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return state.forwards[self.training].function(self, *args, **kwargs)

    return type(base.__name__, (base,), {"forward": forward})


def _value(module: nn.Module, tensor: ElasticTensor, widths: tuple[int, ...]) -> Tensor | None:
    if tensor.kind == STATISTIC:
        base = module._buffers[tensor.name]
        if base is None or base.dim() == 0:
            return None if base is None else base.clone()
        start = torch.ones if tensor.name.endswith("var") else torch.zeros
        return start(shape(tensor.layouts, widths), dtype=base.dtype, device=base.device)
    assembled = getattr(module, tensor.name)
    return None if assembled is None else assembled.detach().clone()
