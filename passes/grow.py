"""Grow: a plain model of larger widths, for good.

In: a model, its ``Analysis`` and new sizes of some widths. Out: a copy with wider layers, whose new channels are fresh,
or copies of old ones, so that the function stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.errors import CheckError, InputError
from netaug_fx.passes.channels import Var
from netaug_fx.passes.compare_outputs import distance
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.drawing import draw_beside_
from netaug_fx.passes.infer import Analysis, Inputs
from netaug_fx.passes.replicate import replicated
from netaug_fx.passes.resize import Resized, first_channels, resize
from netaug_fx.passes.running import neutral, output_tensors

FRESH, REPLICATE = "fresh", "replicate"
_TOLERANCE = 1e-4


def grow(
    model: nn.Module, analysis: Analysis, sizes: Mapping[Var, int], inputs: Inputs, *, how: str = FRESH, seed: int = 0
) -> nn.Module:
    """A copy of a model with larger widths.

    Args:
        model: The model that was analysed; it is not changed.
        analysis: What ``infer`` found.
        sizes: New size of each width that grows; not below the present one.
        inputs: The inputs that the model was analysed on.
        how: ``fresh``: new weights are drawn from the distribution of the present ones beside them. ``replicate``: new
            channels are copies, and the function stays the same (Net2WiderNet, ``replicate``).
        seed: Of what is drawn or copied.

    Raises:
        InputError: a size is below the present one, or ``how`` is neither.
        CheckError: with ``replicate``, the outputs change: a norm or mean spans the channels, or one weight both
            writes and reads them (tied embeddings).
    """
    if how not in (FRESH, REPLICATE):
        raise InputError(f"how must be {FRESH!r} or {REPLICATE!r}, not {how!r}")
    smaller = [(var, size) for var, size in sizes.items() if size < var.size]
    if smaller:
        raise InputError(f"widths can only grow here: {smaller[0][0].size} channels were to become {smaller[0][1]}")
    fill = replicated(seed) if how == REPLICATE else first_channels(_drawn(seed))
    grown = resize(model, analysis, sizes, fill)
    if how == REPLICATE:
        _require_same_function(grown, model, inputs)
    return grown


def _drawn(seed: int) -> Callable[[Resized], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(resized: Resized) -> Tensor:
        old = resized.old
        if not old.is_floating_point():
            return old.new_zeros(resized.shape)
        new = torch.empty(resized.shape, dtype=torch.float32)
        contracted = [d for d in resized.contracted if resized.shape[d] != old.shape[d]]
        fan_in = math.prod(resized.shape[d] / old.shape[d] for d in contracted) if contracted else None
        draw_beside_(new, old, fan_in, generator)
        return new.to(old)

    return draw


def _require_same_function(grown: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    ours, theirs = (_outputs(net, inputs) for net in (grown, model))
    apart = max((distance(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if apart > _TOLERANCE:
        raise CheckError(
            f"copied channels change the outputs of {type(model).__name__} by {apart:.1e} of the largest: a norm or "
            "mean spans them, or one weight both writes and reads them; use how='fresh'"
        )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    copied = copy_model(model).eval()
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    with neutral():
        torch.manual_seed(0)
        found = output_tensors(copied(*args, **kwargs))
    return [(t.double() if t.is_floating_point() else t).cpu().numpy() for t in found]
