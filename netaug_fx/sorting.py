"""Sorting: the most important channels of the widest net become the target's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.assembly import STATISTIC, ElasticTensor, assemble, disassemble, selections
from netaug_fx.errors import InputError
from netaug_fx.passes.graph import INNER
from netaug_fx.passes.layout import Grow, Widths, arrange, coordinates, groups_in, positions, shape
from netaug_fx.split import elastic_tensors, registered
from netaug_fx.supernet import check_kinds, control

Orders = Mapping[int, Tensor]
"""For each sorted group, which old channel stands at each new place."""


def sort_channels_(
    supernet: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, kinds: Collection[str] = (INNER,)
) -> None:
    """Permutes the channels of each group, in place, so that the target holds the most important ones.

    A channel's importance is the L1 norm of the weights that consume it, at the widest ([NetAug], section 3.2 and the
    authors' code, which sorts the inner channels at the start of each epoch of the first phase). The function of the
    widest net stays the same; the target becomes another net, of the same architecture. Norm statistics of channels new
    to the target start at the mean of those known: the next target passes, or ``calibrate_``, make them right.

    Args:
        supernet: What ``augment`` returned.
        optimizer: The optimizer whose per-weight state (momentum, second moments) is to move along.
        kinds: Kinds of groups to sort.

    Raises:
        InputError: not a supernet, or what ``evolve`` returned; an unknown kind; or an optimizer of another net.
    """
    own = control(supernet)
    if own.split is not None:
        raise InputError(
            f"sort_channels_ would exchange channels between the fit hypothesis of this {type(supernet).__name__} and "
            "the reset one, and generations hand the fit one on: give what netaug_fx.augment(model) returned"
        )
    check_kinds(kinds)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer is not None else set()
    if optimizer is not None and held.isdisjoint(id(parameter) for parameter in supernet.parameters()):
        raise InputError(
            "the optimizer holds none of the supernet's parameters; augment copies, so make it of "
            "supernet.parameters(), not of those of the model that went in"
        )
    chosen = {number for number, group in enumerate(own.groups) if group.kind in kinds}
    widest = own.active.widest
    with torch.no_grad():
        orders = _orders(supernet, chosen, widest)
        done: set[int] = set()
        for module, tensor in elastic_tensors(supernet):
            base = registered(module, tensor.name)
            if id(base) in done or not any(groups_in(layout) & chosen for layout in tensor.layouts):
                continue
            done.add(id(base))
            if tensor.kind == STATISTIC:
                _permute_statistic_(base, tensor, widest, orders)
            else:
                _permute_(module, tensor, widest, orders, optimizer)
    own.calibrated.clear()


def _orders(supernet: nn.Module, chosen: set[int], widest: Widths) -> Orders:
    """Channels of each group by falling L1 norm of the weights that sum over them."""
    importance = {number: torch.zeros(widest[number], dtype=torch.double) for number in chosen}
    seen: set[int] = set()
    for module, tensor in elastic_tensors(supernet):
        base = registered(module, tensor.name)
        if id(base) in seen or not any(groups_in(tensor.layouts[dim]) & chosen for dim in tensor.contracted):
            continue
        seen.add(id(base))
        full = _assembled(module, tensor, widest).abs().double().cpu()
        for dim in tensor.contracted:
            norms = full.movedim(dim, 0).reshape(full.shape[dim], -1).sum(1)
            for number in groups_in(tensor.layouts[dim]) & chosen:
                where = coordinates(tensor.layouts[dim], widest, number)
                importance[number].index_add_(0, where[where >= 0], norms[where >= 0])
    return {number: scores.argsort(descending=True, stable=True) for number, scores in importance.items()}


def _assembled(module: nn.Module, tensor: ElasticTensor, widest: Widths) -> Tensor:
    blocks = [registered(module, extra) for extra in tensor.extras]
    base = registered(module, tensor.name)
    return assemble(base, blocks, tensor, selections(tensor, widest, widest, base.device))


def _reordered(full: Tensor, tensor: ElasticTensor, widest: Widths, orders: Orders) -> Tensor:
    def order(grow: Grow) -> Tensor:
        return orders.get(grow.group, torch.arange(widest[grow.group]))

    for dim, layout in enumerate(tensor.layouts):
        if groups_in(layout) & orders.keys():
            full = full.index_select(dim, arrange(layout, widest, order).to(full.device))
    return full


def _permute_(
    module: nn.Module,
    tensor: ElasticTensor,
    widest: Widths,
    orders: Orders,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    base = registered(module, tensor.name)
    blocks = [registered(module, extra) for extra in tensor.extras]
    full = assemble(base, blocks, tensor, selections(tensor, widest, widest, base.device))
    full = _reordered(full, tensor, widest, orders)
    if optimizer is not None:
        _permute_state_(optimizer, base, blocks, tensor, widest, orders)
    for target, value in _pairs(base, blocks, full, tensor, widest):
        target.copy_(value)


def _pairs(
    base: Tensor, blocks: list[Tensor], full: Tensor, tensor: ElasticTensor, widest: Widths
) -> list[tuple[Tensor, Tensor]]:
    part, extras = disassemble(full, base.shape, tensor, widest)
    return list(zip([base, *blocks], [part, *extras], strict=True))


def _permute_state_(
    optimizer: torch.optim.Optimizer,
    base: Tensor,
    blocks: list[Tensor],
    tensor: ElasticTensor,
    widest: Widths,
    orders: Orders,
) -> None:
    """Moves every state of a weight's shape along with the weight; a part without state yet counts as zero."""
    members = [base, *blocks]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    states: list[dict[str, Any]] = [optimizer.state.get(member, {}) for member in members]
    present = next((state for state in states if state), None)
    if present is None:
        return
    per_weight = {
        key
        for member, state in zip(members, states, strict=True)
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == member.shape and value.dim() > 0
    }
    for member, state in zip(members, states, strict=True):
        for key, value in present.items():
            if key in per_weight:
                state.setdefault(key, torch.zeros_like(member))
            else:
                state.setdefault(key, value.clone() if isinstance(value, Tensor) else value)
        if id(member) in held:  # a frozen part takes part in the move, but the optimizer must not learn of it
            optimizer.state[member] = state
    for key in per_weight:
        parts = [state[key] for state in states]
        full = assemble(parts[0], parts[1:], tensor, selections(tensor, widest, widest, base.device))
        full = _reordered(full, tensor, widest, orders)
        for target, value in _pairs(parts[0], parts[1:], full, tensor, widest):
            target.copy_(value)


def _permute_statistic_(base: Tensor, tensor: ElasticTensor, widest: Widths, orders: Orders) -> None:
    full = torch.zeros(shape(tensor.layouts, widest), dtype=base.dtype, device=base.device) + base.mean()
    where = positions(tensor.layouts[0], None, widest).to(base.device)
    full[where] = base
    base.copy_(_reordered(full, tensor, widest, orders)[where])
