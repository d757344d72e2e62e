"""Candidates: a net with a stage wider or deeper, or with larger images, brought to a number of multiply-adds.

Each keeps the list of its changes, by which it can be made anew from the net that it grew from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.api import Compiled, compile_model
from netaug_fx.errors import CheckError, InputError, NetAugError
from netaug_fx.example_inputs import resolve_inputs
from netaug_fx.passes.channels import Var
from netaug_fx.passes.deepen import insert_block
from netaug_fx.passes.fake_macs import at_resolution, fake_macs
from netaug_fx.passes.graph import Group
from netaug_fx.passes.grow import grow
from netaug_fx.passes.growth import predicted_macs
from netaug_fx.passes.infer import Inputs
from netaug_fx.passes.stages import Stage, find_stages, repeatable_blocks

WIDTH, DEPTH, RESOLUTION = "width", "depth", "resolution"
DIMS = (WIDTH, DEPTH, RESOLUTION)
_WIDEST = 64.0  # no stage grows by more at once

Change = Mapping[str, Any]
"""``{"block": path}``, a block inserted behind it; ``{"widths": {group: channels}}``; or ``{"resolution": side}``."""


@dataclass(frozen=True)
class Net:
    """A net on its way: the model, the side of its images, and the multiply-adds of one.

    Attributes:
        inputs: One image of that side, as the model takes it; two, where a norm needs them.
        changes: What made it out of the net that it grew from.
    """

    model: nn.Module
    resolution: int
    macs: int
    inputs: Inputs
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Move:
    """What is enlarged: the width or the depth of a stage, or the resolution (``stage`` is then empty)."""

    dim: str
    stage: str = ""

    def __str__(self) -> str:
        return f"{self.dim} of {self.stage}" if self.stage else self.dim


def net_of(model: nn.Module, inputs: Inputs) -> Net:
    """A net as it stands."""
    images = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.dim() == 4]
    side = images[0].shape[-1] if images else 0
    return Net(model, side, _macs(model, inputs), inputs)


def _macs(model: nn.Module, inputs: Inputs) -> int:
    batch = next(t.shape[0] for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor))
    return fake_macs(model, inputs) // int(batch)


def compiled(net: Net) -> Compiled:
    """The net analysed, and checked on nets that are wider."""
    return compile_model(net.model, _a_little_wider, example_inputs=net.inputs, allow_nothing=True)


def _a_little_wider(group: Group) -> float:
    return max(1.5, (group.width + 3) / group.width)


def moves_of(net: Net, dims: Sequence[str]) -> tuple[Move, ...]:
    """What can be enlarged in a net, in a fixed order."""
    found = compiled(net)
    growing = {group.name for group in found.plan.groups}
    stages = find_stages(net.model, found.analysis, found.inputs)
    return tuple(_moves(stages, growing, net.resolution, dims))


def _moves(stages: Sequence[Stage], growing: set[str], resolution: int, dims: Sequence[str]) -> Iterator[Move]:
    if WIDTH in dims:
        yield from (Move(WIDTH, s.name) for s in stages if growing.intersection((*s.streams, *s.inner)))
    if DEPTH in dims:
        yield from (Move(DEPTH, stage.name) for stage in stages if stage.blocks)
    if RESOLUTION in dims and resolution:
        yield Move(RESOLUTION)


def enlarged(net: Net, move: Move, target: int, *, preserve: bool, pixels: int, seed: int) -> Net | None:
    """The net with one thing enlarged until it has about ``target`` multiply-adds.

    Blocks and pixels come in steps; what is left to the target is made up by the width of the same stage, or of all
    stages where the images are larger.

    Args:
        net: What is enlarged; it is not changed.
        move: What to enlarge.
        target: Multiply-adds of one image.
        preserve: Insert identities and copied channels, so that the function stays the same.
        pixels: The side of the images grows by multiples of this.
        seed: Of what is drawn.

    Returns:
        The larger net; None where one block, or one step of pixels, is too much, or where the net cannot take it.
    """
    try:
        if move.dim == DEPTH:
            deeper = _deepened(net, move.stage, target, preserve, seed)
            return None if deeper is None else widened(deeper, move.stage, target, preserve, seed)
        if move.dim == RESOLUTION:
            larger = _at_larger_images(net, target, pixels)
            return None if larger is None else widened(larger, "", target, preserve, seed)
        return widened(net, move.stage, target, preserve, seed)
    except CheckError:
        return None


def _deepened(net: Net, stage: str, target: int, preserve: bool, seed: int) -> Net | None:
    found = find_stages(net.model, (ready := compiled(net)).analysis, ready.inputs)
    block = next(each.blocks[-1] for each in found if each.name == stage)
    deeper, number = net, 0
    while True:
        grown = inserted(deeper, block, preserve, seed + number)
        if grown.macs > target or grown.macs == deeper.macs:
            return None if deeper is net else deeper
        deeper, number = grown, number + 1


def inserted(net: Net, block: str, preserve: bool, seed: int) -> Net:
    """The net with one more block behind the one that was at ``block`` before any was inserted."""
    known = repeatable_blocks(net.model, net.inputs)
    path = block if block in known else f"{block}.0"  # where it was in no list, it is now in one with the others
    model = insert_block(net.model, path, net.inputs, how="identity" if preserve else "fresh", seed=seed)
    changes = (*net.changes, {"block": path})
    return replace(net, model=model, macs=_macs(model, net.inputs), changes=changes)


def _at_larger_images(net: Net, target: int, pixels: int) -> Net | None:
    larger = net
    while True:
        try:
            tried = at_images(net, larger.resolution + pixels)
        except NetAugError:  # a net for some sizes only
            return None if larger is net else larger
        if tried.macs > target:
            return None if larger is net else larger
        larger = tried


def at_images(net: Net, side: int) -> Net:
    """The net with images of another side.

    Raises:
        TraceError: it does not run on them.
    """
    inputs = at_resolution(net.inputs, side)
    macs = _macs(net.model, inputs)
    changes = (*net.changes, {"resolution": side})
    return replace(net, resolution=side, macs=macs, inputs=_drawn(inputs), changes=changes)


def _drawn(inputs: Inputs) -> Inputs:
    """Images of noise: batches of zeros have no statistics to compare nets by."""
    generator = torch.Generator().manual_seed(0)
    drawn: Inputs = pytree.tree_map_only(
        Tensor, lambda t: torch.randn(t.shape, generator=generator).to(t) if t.dim() == 4 else t, inputs
    )
    return drawn


def widened(net: Net, stage: str, target: int, preserve: bool, seed: int) -> Net:
    """One stage, or all for an empty name, by the one factor that comes closest to the target."""
    found = compiled(net)
    names = {
        name
        for each in find_stages(net.model, found.analysis, found.inputs)
        if stage in ("", each.name)
        for name in (*each.streams, *each.inner)
    }
    growing = {var: found.plan.groups[number] for var, number in found.plan.numbers.items()}
    widths = {var: group.width for var, group in growing.items() if group.name in names}
    base = predicted_macs(found.analysis, {})

    def macs_at(factor: float) -> float:
        return net.macs * predicted_macs(found.analysis, _times(widths, factor)) / base

    sizes = _times(widths, _closest(macs_at, target))
    return _with_widths(net, found, {var: size for var, size in sizes.items() if size != var.size}, preserve, seed)


def _with_widths(net: Net, found: Compiled, sizes: dict[Var, int], preserve: bool, seed: int) -> Net:
    if not sizes:
        return net
    how = "replicate" if preserve else "fresh"
    model = grow(net.model, found.analysis, sizes, found.inputs, how=how, seed=seed)
    named = {found.plan.groups[found.plan.numbers[var]].name: size for var, size in sizes.items()}
    changes = (*net.changes, {"widths": named})
    return replace(net, model=model, macs=_macs(model, net.inputs), changes=changes)


def _times(widths: dict[Var, int], factor: float) -> dict[Var, int]:
    return {var: round(width * factor) for var, width in widths.items()}


def _closest(macs_at: Callable[[float], float], target: int) -> float:
    """The factor whose multiply-adds, which rise with it in steps, are closest to the target."""
    low, high = 1.0, 1.0
    while macs_at(high) < target and high < _WIDEST:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if macs_at(middle) < target else (low, middle)
    below: Any = abs(macs_at(low) - target)
    return low if below <= abs(macs_at(high) - target) else high


# -- made anew -------------------------------------------------------------------------------------


def rebuilt(
    model: nn.Module, changes: Sequence[Change], *, example_inputs: Any = None, preserve: bool = False, seed: int = 0
) -> nn.Module:
    """A net that ``enlarge`` grew, made anew from the model that it grew from.

    Its weights are the model's with fresh ones (or, with ``preserve``, copies) beside them; those of the grown net load
    into it.

    Args:
        model: A model as it was given to ``enlarge``; it is not changed.
        changes: ``Enlarged.changes``, or these after a way through JSON.
        example_inputs: As for ``augment``.
        preserve: As for ``enlarge``.
        seed: Of what is drawn.

    Raises:
        InputError: the changes are of another model.
    """
    net = net_of(model, resolve_inputs(model, example_inputs))
    for number, change in enumerate(changes):
        net = _changed(net, change, preserve, seed + number)
    return net.model


def _changed(net: Net, change: Change, preserve: bool, seed: int) -> Net:
    if "resolution" in change:
        return at_images(net, change["resolution"])
    if "block" in change:
        return inserted(net, change["block"], preserve, seed)
    found = compiled(net)
    groups = {found.plan.groups[number].name: var for var, number in found.plan.numbers.items()}
    strangers = [name for name in change["widths"] if name not in groups]
    if strangers:
        raise InputError(
            f"{type(net.model).__name__} has no group {strangers[0]!r}: these changes are of another model"
        )
    sizes = {groups[name]: size for name, size in change["widths"].items()}
    return _with_widths(net, found, sizes, preserve, seed)
