"""First weights as the paper's authors draw them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from netaug_fx.elastic import STATE, ModuleState
from netaug_fx.passes.layout import shape
from netaug_fx.supernet import control

LINEAR_STD = 0.02
"""Standard deviation of a linear layer's first weights ([NetAug], authors' configuration)."""


def initialise_at_widest_(supernet: nn.Module) -> None:
    """Draws all convolutions and linear layers anew, for the widest net, in place.

    Convolutions are uniform within ``1 / sqrt(fan_in)`` of zero, the fan-in being the widest net's (Kaiming-uniform
    with a = sqrt(5), [NetAug], authors' configuration); linear layers are normal, cut at two units from zero; biases
    are zero. The target, a part of this net, starts with smaller weights than it would by itself.
    Draws from torch's own generator.

    Raises:
        InputError: not a supernet.
    """
    control(supernet)
    with torch.no_grad():
        for module in supernet.modules():
            if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                continue
            for part in _parts(module, "bias"):
                part.zero_()
            for part in _parts(module, "weight"):
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(part, std=LINEAR_STD)
                else:
                    bound = _widest_fan_in(module) ** -0.5
                    part.uniform_(-bound, bound)


def _parts(module: nn.Module, name: str) -> Iterator[Tensor]:
    """A layer's own tensor, then the blocks beside it."""
    own = module._parameters.get(name)
    if own is None:  # no bias, or a weight that a parametrization computes
        return
    yield own
    state = module.__dict__.get(STATE)
    if isinstance(state, ModuleState) and name in state.tensors:
        yield from (module._parameters[extra] for extra in state.tensors[name].extras)  # type: ignore[misc]


def _widest_fan_in(module: nn.Module) -> int:
    state = module.__dict__.get(STATE)
    own = module._parameters["weight"]
    assert own is not None
    sizes = tuple(own.shape)
    if isinstance(state, ModuleState) and "weight" in state.tensors:
        sizes = tuple(shape(state.tensors["weight"].layouts, state.active.widest))
    # A transposed convolution's weight has its outputs second; torch counts its fan-in the same way.
    return max(torch.Size(sizes[1:]).numel(), 1)
