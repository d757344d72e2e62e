"""Candidates: a net with a stage wider or deeper, or with larger images, brought to a number of multiply-adds.

Each keeps the list of its changes, by which it can be made anew from the net that it grew from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.api import Compiled, compile_model
from netaug_fx.errors import CheckError, InputError, NetAugError
from netaug_fx.evolution import a_little_wider
from netaug_fx.example_inputs import resolve_inputs
from netaug_fx.passes.channels import Var
from netaug_fx.passes.deepen import insert_block, moved_path
from netaug_fx.passes.fake_macs import at_resolution, fake_macs, image_sides
from netaug_fx.passes.grow import grow
from netaug_fx.passes.growth import predicted_macs
from netaug_fx.passes.infer import Inputs
from netaug_fx.passes.plan import check_pins
from netaug_fx.passes.probe import drawn
from netaug_fx.passes.stages import Stage, find_stages

WIDTH, DEPTH, RESOLUTION = "width", "depth", "resolution"
DIMS = (WIDTH, DEPTH, RESOLUTION)
BELOW, ABOVE = 0.10, 0.05  # a candidate further from its target is no fair one; in a small net a channel is much
_WIDEST = 64.0  # no stage grows by more at once

Change = Mapping[str, Any]
"""``{"block": path}``, a block inserted behind it; ``{"widths": {group: channels}}``; or ``{"resolution": side}``."""


@dataclass(frozen=True)
class Net:
    """A net on its way.

    Attributes:
        model: The net.
        resolution: Side of its square images; 0 for a net that takes none.
        macs: Multiply-adds of one image.
        inputs: One image of that side, as the model takes it; two, where a norm needs them.
        changes: What made it out of the net that it grew from.
        pin: Paths of modules whose widths stay.
    """

    model: nn.Module
    resolution: int
    macs: int
    inputs: Inputs
    changes: tuple[Change, ...] = ()
    pin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Move:
    """What is enlarged: the width or the depth of a stage, or the resolution (``stage`` is then empty)."""

    dim: str
    stage: str = ""

    def __str__(self) -> str:
        return f"{self.dim} of {self.stage}" if self.stage else self.dim


@dataclass(frozen=True)
class LeftOut:
    """What could have been enlarged, but came to no candidate.

    Attributes:
        move: What was to be enlarged.
        why: What stood in the way.
    """

    move: Move
    why: str

    def __str__(self) -> str:
        return f"{self.move}: {self.why}"


def net_of(model: nn.Module, inputs: Inputs, pin: Sequence[str] = ()) -> Net:
    """A net as it stands.

    Args:
        model: Any module; it is not changed.
        inputs: Positional and keyword arguments of its forward; noise takes the place of zeros.
        pin: Globs of module paths whose widths stay.

    Raises:
        InputError: one of ``pin`` matches no module.
    """
    check_pins(model, pin)
    paths = [path for path, _ in model.named_modules() if path]
    pinned = tuple(path for path in paths if any(fnmatchcase(path, pattern) for pattern in pin))
    height, width = image_sides(inputs) or (0, 0)
    return Net(model, width if height == width else 0, _macs(model, inputs), drawn(inputs), pin=pinned)


def _macs(model: nn.Module, inputs: Inputs) -> int:
    batch = next(t.shape[0] for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor))
    return fake_macs(model, inputs) // int(batch)


def compiled(net: Net) -> Compiled:
    """The net analysed, and checked on nets that are wider."""
    return compile_model(net.model, a_little_wider, example_inputs=net.inputs, pin=net.pin, allow_nothing=True)


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


def enlarged(
    net: Net, move: Move, target: int, *, preserve: bool, pixels: int, seed: int, limit: float = math.inf
) -> Net | LeftOut:
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
        limit: Multiply-adds that it may have at most, where this is less than 5 % above the target.

    Returns:
        The larger net, at most 10 % below and 5 % above the target; or why there is none: one block, or one step of
        pixels, is too much, widths do not come near the target, or the net cannot take it.
    """
    try:
        grown = _grown(net, move, target, limit, preserve, pixels, seed)
    except CheckError as error:
        return LeftOut(move, str(error))
    if isinstance(grown, str):
        return LeftOut(move, grown)
    if net.macs < grown.macs <= limit and 1 - BELOW <= grown.macs / target <= 1 + ABOVE:
        return grown
    return LeftOut(move, f"comes to {grown.macs:,} multiply-adds, {grown.macs / target:.0%} of the target")


def _grown(net: Net, move: Move, target: int, limit: float, preserve: bool, pixels: int, seed: int) -> Net | str:
    if move.dim == WIDTH:
        return widened(net, move.stage, target, preserve, seed, limit)
    if move.dim == DEPTH:
        deeper = _deepened(net, move.stage, target, preserve, seed)
        return deeper if isinstance(deeper, str) else widened(deeper, move.stage, target, preserve, seed, limit)
    larger = _at_larger_images(net, target, pixels)
    return larger if isinstance(larger, str) else widened(larger, "", target, preserve, seed, limit)


def _deepened(net: Net, stage: str, target: int, preserve: bool, seed: int) -> Net | str:
    ready = compiled(net)
    found = find_stages(net.model, ready.analysis, ready.inputs)
    block = next(each.blocks[-1] for each in found if each.name == stage)
    deeper, number = net, 0
    while True:
        grown, block = inserted(deeper, block, preserve, seed + number)
        if grown.macs > target or grown.macs == deeper.macs:
            return _too_much("one more block", grown, target) if deeper is net else deeper
        deeper, number = grown, number + 1


def _too_much(what: str, grown: Net, target: int) -> str:
    if grown.macs <= target:
        return f"{what}: no more multiply-adds"
    return f"{what}: {grown.macs:,} multiply-adds, {grown.macs / target:.0%} of the target"


def inserted(net: Net, block: str, preserve: bool, seed: int) -> tuple[Net, str]:
    """The net with one more block behind the one at ``block``, and where that one is now, for yet another."""
    model = insert_block(net.model, block, net.inputs, how="identity" if preserve else "fresh", seed=seed)
    changes = (*net.changes, {"block": block})
    pin = tuple(moved_path(net.model, block, path) for path in net.pin)
    deeper = replace(net, model=model, macs=_macs(model, net.inputs), changes=changes, pin=pin)
    return deeper, moved_path(net.model, block, block)


def _at_larger_images(net: Net, target: int, pixels: int) -> Net | str:
    larger = net
    while True:
        try:
            tried = at_images(net, larger.resolution + pixels)
        except NetAugError as error:  # a net for some sizes only
            return str(error) if larger is net else larger
        if tried.macs > target:
            return _too_much(f"images of {tried.resolution} pixels", tried, target) if larger is net else larger
        larger = tried


def at_images(net: Net, side: int) -> Net:
    """The net with images of another side.

    Raises:
        InputError: its images are not square.
        TraceError: it does not run on them.
    """
    inputs = at_resolution(net.inputs, side)
    macs = _macs(net.model, inputs)
    changes = (*net.changes, {"resolution": side})
    return replace(net, resolution=side, macs=macs, inputs=drawn(inputs), changes=changes)


def widened(net: Net, stage: str, target: int, preserve: bool, seed: int, limit: float = math.inf) -> Net:
    """One stage, or all for an empty name, by the one factor that comes closest to the target, at most to ``limit``."""
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

    def macs_at(sizes: Mapping[Var, int]) -> float:
        return net.macs * predicted_macs(found.analysis, sizes) / base

    sizes = _closest(widths, macs_at, target, limit) if base else {}
    return _with_widths(net, found, {var: size for var, size in sizes.items() if size != var.size}, preserve, seed)


def _with_widths(net: Net, found: Compiled, sizes: dict[Var, int], preserve: bool, seed: int) -> Net:
    if not sizes:
        return net
    how = "replicate" if preserve else "fresh"
    model = grow(net.model, found.analysis, sizes, found.inputs, how=how, seed=seed)
    named = {found.plan.groups[found.plan.numbers[var]].name: size for var, size in sizes.items()}
    changes = (*net.changes, {"widths": named})
    return replace(net, model=model, macs=_macs(model, net.inputs), changes=changes)


def _times(widths: Mapping[Var, int], factor: float) -> dict[Var, int]:
    return {var: round(width * factor) for var, width in widths.items()}


def _closest(
    widths: Mapping[Var, int], macs_at: Callable[[Mapping[Var, int]], float], target: int, limit: float
) -> dict[Var, int]:
    """The widths, times one factor, whose multiply-adds are closest to the target and at most the limit.

    Multiply-adds rise with the factor in steps. Where several widths take one at once, some of them may be a channel
    ahead of the others, since in a small net each is much.
    """
    low, high = 1.0, 1.0
    while macs_at(_times(widths, high)) < target and high < _WIDEST:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if macs_at(_times(widths, middle)) < target else (low, middle)
    tried = [_times(widths, low)]
    for var, size in _times(widths, high).items():
        if size != tried[-1][var]:
            tried.append(tried[-1] | {var: size})
    fitting = [sizes for sizes in tried if macs_at(sizes) <= limit]
    return min(fitting, key=lambda sizes: abs(macs_at(sizes) - target), default=dict(widths))


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
        return inserted(net, change["block"], preserve, seed)[0]
    found = compiled(net)
    groups = {found.plan.groups[number].name: var for var, number in found.plan.numbers.items()}
    strangers = [name for name in change["widths"] if name not in groups]
    if strangers:
        raise InputError(
            f"{type(net.model).__name__} has no group {strangers[0]!r}: these changes are of another model"
        )
    sizes = {groups[name]: size for name, size in change["widths"].items()}
    return _with_widths(net, found, sizes, preserve, seed)
