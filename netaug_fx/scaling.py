"""What greedy enlarging is held against: all widths by one factor, and compound scaling, at given multiply-adds.

[EfficientNet]: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv 1905.11946.
"""

from __future__ import annotations

import math

from torch import nn

from netaug_fx.api import Compiled
from netaug_fx.candidates import Net, at_images, compiled, inserted, widened
from netaug_fx.errors import CheckError, InputError, PlanError, TraceError
from netaug_fx.passes.stages import Stage, find_stages

DEPTH, WIDTH, RESOLUTION = 1.2, 1.1, 1.15  # section 3.3: found by grid search on EfficientNet-B0
_FINER = 0.97  # each time that depth and resolution alone are too much


def scaled_by_width(net: Net, macs: int, *, seed: int = 0) -> Net:
    """The net with all widths times one factor, at about ``macs`` multiply-adds; itself where it has these already.

    Raises:
        InputError: it has more.
        PlanError: no width can grow.
    """
    _refuse_less(net, macs)
    if macs == net.macs:
        return net
    wider = widened(net, "", macs, False, seed)
    if wider is net:
        raise PlanError(f"{type(net.model).__name__} has no width that could grow to {macs:,} multiply-adds")
    return wider


def scaled_compound(net: Net, macs: int, *, pixels: int = 8, seed: int = 0) -> Net:
    """The net scaled in depth by 1.2^phi, in resolution by 1.15^phi and in width by 1.1^phi, at ``macs`` multiply-adds.

    Depths are rounded up, as in EfficientNet's code. phi is the one that leads to the budget; where rounded depths and
    pixels alone lead beyond it, the next smaller one. What is left is made up by width.

    Args:
        net: What is scaled; it is not changed.
        macs: Multiply-adds of one image.
        pixels: The side of the images is a multiple of this.
        seed: Of what is drawn.

    Returns:
        The scaled net; itself where it has these multiply-adds already.

    Raises:
        InputError: it has more.
        PlanError: nothing can be scaled.
    """
    _refuse_less(net, macs)
    if macs == net.macs:
        return net
    ready = compiled(net)
    stages = [stage for stage in find_stages(net.model, ready.analysis, ready.inputs) if stage.blocks]
    depths = [_depth(net.model, ready, stage) for stage in stages]
    phi = math.log(macs / net.macs) / math.log(DEPTH * WIDTH**2 * RESOLUTION**2)
    scaled, tried = None, None
    while scaled is None or scaled.macs > macs:
        more = tuple(math.ceil(depth * DEPTH**phi - 1e-9) - depth for depth in depths)
        side = max(net.resolution, round(net.resolution * RESOLUTION**phi / pixels) * pixels) if phi else net.resolution
        if (more, side) != tried:
            scaled, tried = _scaled(net, stages, more, side, seed), (more, side)
        phi = phi * _FINER if phi > 0.01 else 0.0
    wider = widened(scaled, "", macs, False, seed)
    if wider is net:
        raise PlanError(f"{type(net.model).__name__} has nothing that could be scaled to {macs:,} multiply-adds")
    return wider


def _refuse_less(net: Net, macs: int) -> None:
    if macs < net.macs:
        raise InputError(f"macs={macs:,} is below what {type(net.model).__name__} has: {net.macs:,} for one image")


def _scaled(net: Net, stages: list[Stage], more: tuple[int, ...], side: int, seed: int) -> Net | None:
    """With blocks inserted and larger images; None where the net does not run so."""
    try:
        # From the last stage to the first: paths of earlier blocks stay.
        for stage, number in reversed(list(zip(stages, more, strict=True))):
            block = stage.blocks[-1]
            for index in range(number):
                net, block = inserted(net, block, False, seed + index)
        return net if side == net.resolution else at_images(net, side)
    except (CheckError, TraceError):
        return None


def _depth(model: nn.Module, ready: Compiled, stage: Stage) -> int:
    """Blocks of a stage: those that can be repeated, and their like beside them that change the shape.

    A stage's first block halves the size or widens, so that it cannot be repeated, yet counts as a layer of the stage
    ([EfficientNet], table 1). It is told by its class and its place, beside the others in one list, and by writing a
    stream of the stage.
    """
    above = stage.blocks[-1].rpartition(".")[0]
    kind = type(model.get_submodule(stage.blocks[-1]))
    groups = {group.name: group for group in ready.plan.groups}
    writers = [path for name in stage.streams if name in groups for path in groups[name].writers]
    beside = [
        f"{above}.{name}." if above else f"{name}."
        for name, module in model.get_submodule(above).named_children()
        if type(module) is kind
    ]
    return max(len(stage.blocks), sum(any(path.startswith(block) for path in writers) for block in beside))
