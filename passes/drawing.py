"""Drawing: weights beside present ones, of the same distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
