"""Stages: parts of a net that work at one feature-map size on one residual stream.

In: a model and its ``Analysis``. Out: its ``Stage``s in the order in which they run: the widths that belong to each,
and the blocks in it that can be repeated. (Greedy Network Enlarging decides width and depth stage by stage.)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Var
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.graph import INNER, STREAM, Group, find_groups, weight_matrices
from netaug_fx.passes.growth import predicted_macs
from netaug_fx.passes.infer import Analysis, Inputs
from netaug_fx.passes.plan import sources_of
from netaug_fx.passes.recorder import OpRecord
from netaug_fx.passes.running import neutral

_BY_HEADS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # attention is run as plain products


@dataclass(frozen=True)
class Stage:
    """A part of a net at one feature-map size.

    Attributes:
        name: The name of its first stream.
        positions: Positions of its feature maps for one image: height times width, or tokens.
        streams: Groups that lead from block to block; one, where blocks add to it, or several, each written once.
        inner: Groups inside the blocks that write these streams.
        blocks: Paths of modules that give back the shape that they take, so that another can follow.
    """

    name: str
    positions: int
    streams: tuple[str, ...]
    inner: tuple[str, ...]
    blocks: tuple[str, ...]


def find_stages(model: nn.Module, analysis: Analysis, inputs: Inputs) -> tuple[Stage, ...]:
    """The stages of a model.

    Streams that one layer writes are joined with their neighbours of the same size: the layers of a plain net between
    two poolings are one stage, and so are a stem and a first block that changes its width.

    Args:
        model: The model that was analysed; it is not changed.
        analysis: What ``infer`` found.
        inputs: The inputs that it was analysed on; run once, for the shapes that modules take and give.
    """
    groups = find_groups(model, analysis)
    written = list(_written(analysis, batch_of(inputs)))
    positions: dict[Var, int] = {}
    for var, _, size in written:
        if var in groups:
            positions.setdefault(var, size)
    streams = [var for var, group in groups.items() if group.kind == STREAM and var in positions]
    parts: list[list[Var]] = []
    for var in streams:
        last = parts[-1][-1] if parts else None
        joins = last is not None and positions[last] == positions[var] and _once(groups[last]) and _once(groups[var])
        if joins:
            parts[-1].append(var)
        else:
            parts.append([var])
    inner = _inner_of(analysis, groups, parts)
    blocks = _blocks_of(model, inputs, parts, positions, written)
    return tuple(
        Stage(
            groups[part[0]].name,
            positions[part[0]],
            tuple(groups[var].name for var in part),
            tuple(groups[var].name for var in inner[number]),
            tuple(blocks[number]),
        )
        for number, part in enumerate(parts)
    )


def _once(group: Group) -> bool:
    return len(group.writers) == 1


def batch_of(inputs: Inputs) -> int:
    """How many images the inputs hold: the first size of the first tensor."""
    sizes = (t.shape[0] for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.dim())
    return max(next(sizes, 1), 1)


def macs_by_positions(analysis: Analysis, batch: int) -> dict[int, int]:
    """Multiply-adds of one image by the positions of the feature map that is written (1 behind global pooling).

    Attention's heads are no positions: its products count at those of their rows.
    """
    found: dict[int, int] = defaultdict(int)
    for record in _counted(analysis):
        is_convolution = record.func.overloadpacket is torch.ops.aten.convolution
        channels_at = 1 if is_convolution else len(record.shapes[0]) - 1
        alone = replace(analysis, operators={False: (record,), True: ()})
        found[_positions(record, channels_at, batch)] += predicted_macs(alone, {}) // batch
    return dict(found)


def _written(analysis: Analysis, batch: int) -> Iterator[tuple[Var, str, int]]:
    """What convolutions, linear layers and products write, as it runs: width, module, and positions of an image."""
    for record in _counted(analysis):
        for index, dim in enumerate(record.dims[0]):
            for var in channels.variables(dim):
                yield var, record.module, _positions(record, index, batch)


def _counted(analysis: Analysis) -> Iterator[OpRecord]:
    return (
        record for record in analysis.operators[False] if getattr(record.func, "overloadpacket", None) in flop_registry
    )


def _positions(record: OpRecord, channels_at: int, batch: int) -> int:
    """Positions of one image in what an operator writes, whose channels are along a dimension."""
    shape = record.shapes[0]
    if record.func.overloadpacket in _BY_HEADS and channels_at == len(shape) - 1 and shape[0] % batch == 0:
        return shape[-2]  # what is before are images and heads
    return max(math.prod((*shape[:channels_at], *shape[channels_at + 1 :])) // batch, 1)


def _inner_of(analysis: Analysis, groups: Mapping[Var, Group], parts: list[list[Var]]) -> dict[int, list[Var]]:
    """Inner groups belong to the stage of the stream that they are summed into."""
    stage_of = {var: number for number, part in enumerate(parts) for var in part}
    targets: dict[Var, list[Var]] = defaultdict(list)
    for var, sources in sources_of(analysis).items():
        for source in sources:
            targets[source].append(var)
    found: dict[int, list[Var]] = defaultdict(list)
    for var, group in groups.items():
        if group.kind == INNER:
            reached = _first_reached(var, targets, stage_of)
            if reached is not None:
                found[reached].append(var)
    return found


def _first_reached(var: Var, targets: Mapping[Var, list[Var]], stage_of: Mapping[Var, int]) -> int | None:
    seen, waiting = {var}, [var]
    while waiting:
        nexts = [target for source in waiting for target in targets.get(source, ()) if target not in seen]
        seen.update(nexts)
        stages = [stage_of[target] for target in nexts if target in stage_of]
        if stages:
            return min(stages)
        waiting = nexts
    return None


# -- blocks ----------------------------------------------------------------------------------------


def _blocks_of(
    model: nn.Module,
    inputs: Inputs,
    parts: list[list[Var]],
    positions: Mapping[Var, int],
    written: Sequence[tuple[Var, str, int]],
) -> dict[int, list[str]]:
    """Repeatable blocks by the stage that they write last, at its own size: a gate writes it at another."""
    stage_of = {var: number for number, part in enumerate(parts) for var in part}
    writing = [(f"{path}.", stage_of[v]) for v, path, size in written if v in stage_of and size == positions[v]]
    found: dict[int, list[str]] = defaultdict(list)
    for block in repeatable_blocks(model, inputs):
        stages = [number for path, number in writing if path.startswith(f"{block}.")]
        if stages:
            found[stages[-1]].append(block)
    return found


def repeatable_blocks(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Paths of modules that another of their kind can follow, in order.

    The outermost modules of a class of the user's own, with at least two weight matrices, that are called once with one
    tensor and give one of the same shape; where such a module holds several of one class in a list, these.
    """
    candidates = {path: type(module) for path, module in _keeping_shape(model, inputs)}
    lists = {path for path, module in model.named_modules() if isinstance(module, (nn.Sequential, nn.ModuleList))}
    holders = {path for path in candidates if _holds_several(path, candidates, lists)}
    chosen: list[str] = []
    for path in candidates:
        outer = any(path.startswith(f"{other}.") for other in chosen)
        if path not in holders and not outer:
            chosen.append(path)
    return tuple(chosen)


def _holds_several(path: str, candidates: Mapping[str, type], lists: Set[str]) -> bool:
    """Whether at least two candidates of one class stand in one list below a module.

    Under names of their own they are parts of a block, such as the first and the last layers of a bottleneck.
    """
    within = Counter(
        (other.rpartition(".")[0], cls) for other, cls in candidates.items() if other.startswith(f"{path}.")
    )
    return any(count > 1 for (above, _), count in within.items() if above in lists)


def _keeping_shape(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, nn.Module]]:
    copied = copy_model(model).eval()
    shapes: dict[str, list[Any]] = defaultdict(list)

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            same = len(given) == 1 and isinstance(output, Tensor) and output.shape == given[0].shape
            shapes[path].append(same)

        return hook

    units = {
        path: module
        for path, module in copied.named_modules()
        if path and not type(module).__module__.startswith("torch.nn.") and weight_matrices(module) >= 2
    }
    for path, module in units.items():
        module.register_forward_hook(watch(path), with_kwargs=True)
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.clone(), inputs)
    with neutral():
        copied(*args, **kwargs)
    yield from ((path, module) for path, module in units.items() if shapes[path] == [True])
