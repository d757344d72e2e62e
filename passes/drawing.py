"""Drawing: weights anew, and weights beside present ones, of the same distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def draw_beside_(new: Tensor, base: Tensor, fan_in: float | None, generator: torch.Generator) -> None:
    """Fills ``new`` (float32) uniformly, with the mean and the variance of ``base``.

    Args:
        new: What is filled.
        base: The present weights.
        fan_in: How many times as many inputs a weight is summed over as before; None where it is not summed. The mean
            is then zero and the variance falls in proportion, so that outputs keep their scale (Kaiming's rule, with
            the layer's own gain). Constant tensors (norms, layer scales) are continued; weights that are all zero stay
            so.
        generator: Where the numbers come from.
    """
    values = base.detach().float()
    mean, spread = (values.mean().item(), values.std(correction=0).item()) if values.numel() else (0.0, 0.0)
    if fan_in is not None:
        mean, spread = 0.0, math.sqrt((spread**2 + mean**2) / fan_in)
    bound = math.sqrt(3.0) * spread
    new.uniform_(-bound, bound, generator=generator).add_(mean)


def initialise_(net: nn.Module, first: Mapping[str, tuple[float, float]]) -> None:
    """Draws all weights anew: by each module's ``reset_parameters``; what that does not write, by ``first_moments``.

    Children before their parents, since a parent may initialise them in another way than they do themselves.
    """
    for path, module in reversed(list(net.named_modules())):
        own = dict(module.named_parameters(path, recurse=False))
        before = {name: parameter._version for name, parameter in own.items()}
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
        for name, parameter in own.items():
            # Behind weight normalisation or pruning, it wrote what is computed from this one.
            if parameter._version == before[name] and parameter.is_floating_point():
                mean, deviation = first[name]
                bound = math.sqrt(3.0) * deviation
                parameter.uniform_(-bound, bound).add_(mean)


def first_moments(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every parameter, by name."""
    return {name: _moments(parameter.detach()) for name, parameter in model.named_parameters(remove_duplicate=False)}


def _moments(values: Tensor) -> tuple[float, float]:
    if not values.numel():
        return 0.0, 0.0
    return values.double().mean().item(), values.double().std(correction=0).item()
