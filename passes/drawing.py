"""Drawing: weights anew, and weights beside present ones, of the same distribution."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from netaug_fx.errors import InputError


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

    Children before their parents, since a parent may initialise them in another way than they do themselves. A layer
    with parametrizations is drawn as it was before it got them, and then gets them again. What ``first`` does not know
    stays.

    Raises:
        InputError: a parameter that nothing writes held values that are not finite, which tell of no distribution.
    """
    for path, module in reversed(list(net.named_modules())):
        own = dict(module.named_parameters(path, recurse=False))
        before = {name: (parameter._version, parameter.detach().clone()) for name, parameter in own.items()}
        _reset_parameters_(module)
        if parametrize.is_parametrized(module):
            _reset_below_parametrizations_(module)
        for name, parameter in own.items():
            # Behind weight normalisation or pruning, it wrote what is computed from this one. Versions alone would not
            # do: what is written through ``.data`` does not count there.
            version, values = before[name]
            written = parameter._version != version or not torch.equal(parameter.nan_to_num(), values.nan_to_num())
            if name in first and not written:
                _draw_by_moments_(parameter, name, first[name])


def _reset_parameters_(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()


def _reset_below_parametrizations_(module: Any) -> None:
    """Draws a layer as it was before it got its parametrizations, and assigns what comes of it to them.

    Some cannot be assigned to: what they compute from stays as it was drawn by itself.
    """
    weights = {name: nn.Parameter(getattr(module, name).detach().clone()) for name in module.parametrizations}
    plain: Any = module.__new__(type(module).__bases__[0])
    children = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    plain.__dict__.update(vars(module) | {"_parameters": module._parameters | weights, "_modules": children})
    _reset_parameters_(plain)
    for name, weight in weights.items():
        with contextlib.suppress(NotImplementedError, RuntimeError):
            setattr(module, name, weight.detach())


def _draw_by_moments_(parameter: Tensor, name: str, moments: tuple[float, float]) -> None:
    values, (mean, deviation) = _reals(parameter), moments
    if not values.is_floating_point() or not (math.isfinite(mean) and math.isfinite(deviation)):
        if values.is_floating_point() and parameter.requires_grad:
            raise InputError(
                f"parameter {name!r} held values that are not finite, which tell of no distribution to draw it from: "
                "give reset_ an initialise, make it a buffer, or freeze it (requires_grad_(False))"
            )
        return
    bound = math.sqrt(3.0) * deviation
    values.uniform_(-bound, bound).add_(mean)


def _reals(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values


def first_moments(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every parameter, by name."""
    return {name: _moments(parameter.detach()) for name, parameter in model.named_parameters(remove_duplicate=False)}


def _moments(values: Tensor) -> tuple[float, float]:
    if not values.numel():
        return 0.0, 0.0
    values = _reals(values).double()
    return values.mean().item(), values.std(correction=0).item()
