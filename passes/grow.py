"""Grow: a plain model of larger widths, for good.

In: a model, its ``Analysis`` and new sizes of some widths. Out: a copy with wider layers, whose new channels are fresh,
or copies of old ones, so that the function stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from netaug_fx.errors import CheckError, InputError
from netaug_fx.passes.channels import Var
from netaug_fx.passes.drawing import draw_beside_
from netaug_fx.passes.infer import Analysis, Inputs
from netaug_fx.passes.probe import apart
from netaug_fx.passes.replicate import places_of, replicated
from netaug_fx.passes.resize import Resized, first_channels, resize

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
        how: ``fresh``: new weights are drawn from the distribution of the present ones beside them, and buffers (norm
            statistics) go on with copies of what they hold. ``replicate``: new channels are copies, and the function
            stays the same (Net2WiderNet, ``replicate``).
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
        if not old.is_floating_point() and not old.is_complex():
            return old.new_zeros(resized.shape)
        if resized.is_buffer:
            return _continued(resized)
        new = torch.empty(resized.shape, dtype=torch.complex64 if old.is_complex() else torch.float32)
        contracted = [d for d in resized.contracted if resized.shape[d] != old.shape[d]]
        fan_in = math.prod(resized.shape[d] / old.shape[d] for d in contracted) if contracted else None
        draw_beside_(_reals(new), _reals(old), fan_in, generator)
        return new.to(old)

    return draw


def _reals(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values


def _continued(resized: Resized) -> Tensor:
    """A buffer whose new channels are the old ones in turn: what is drawn may be none (a negative variance)."""
    turns = [torch.arange(new) % old for old, new in zip(resized.before, resized.after, strict=True)]
    continued = resized.old
    for dim, places in places_of(resized, turns):
        continued = continued.index_select(dim, places.to(continued.device))
    return continued.clone()


def _require_same_function(grown: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    changed = apart(grown, model, inputs)
    if changed > _TOLERANCE:
        raise CheckError(
            f"copied channels change the outputs of {type(model).__name__} by {changed:.1e} of the largest: a norm or "
            "mean spans them, or one weight both writes and reads them; use how='fresh'"
        )
