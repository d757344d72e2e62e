"""Calibration: norm statistics re-estimated from data, for the target or for any other width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.assembly import STATISTIC
from netaug_fx.elastic import STATE, ModuleState
from netaug_fx.errors import InputError
from netaug_fx.supernet import Supernet, control


def calibrate_(supernet: nn.Module, loader: Iterable[Any], widths: Mapping[str, int] | None = None) -> None:
    """Re-estimates the running statistics of all norms as plain averages over the batches of ``loader``, in place.

    For the target (``widths=None``) they replace the running statistics. For other widths they are kept beside them
    until the next augmented pass in training mode, and used by ``augmented(widths)`` in evaluation mode.
    ([NetAug], appendix: the authors re-estimate on 16k images.)

    Args:
        supernet: What ``augment`` returned.
        loader: Batches: a tensor, a tuple or list whose first item is the input, or a dict of keyword arguments.
        widths: Width by group name, as for ``augmented``; the target's by default.

    Raises:
        InputError: not a supernet, one of ``evolve``, or one within ``augmented``; unknown groups or widths out of
            range; a norm without momentum; or a loader without batches (the statistics are then left as they were).
    """
    own = control(supernet)
    if own.split is not None:
        raise InputError("norm statistics of what evolve returned are those of its dense passes, and not re-estimated")
    norms = [module for module in supernet.modules() if _keeps_statistics(module)]
    for path, module in supernet.named_modules():
        if _keeps_statistics(module) and "momentum" not in module.__dict__:
            raise InputError(
                f"module {path!r} ({type(module).__name__}) keeps norm statistics but has no attribute 'momentum', "
                "so they cannot be averaged: give it one and let its forward use it"
            )
    if not norms:
        return
    if own.active.widths is not None:
        raise InputError("calibrate_ was called within augmented(): leave the context and give it the widths instead")
    assignment = None if widths is None else own.as_widths(widths)
    device = next((parameter.device for parameter in supernet.parameters()), torch.device("cpu"))
    context: Any = _from_scratch(norms) if widths is None else Supernet.augmented(supernet, widths)  # type: ignore[arg-type]
    with torch.no_grad(), _averaging(supernet, norms), context:
        if assignment is not None:
            own.active.statistics = {}
        if _feed(supernet, loader, device, norms) == 0:
            raise InputError("loader gave no batches: calibrate_ needs at least one")
        if assignment is not None:
            own.calibrated[assignment] = own.active.statistics or {}


def _keeps_statistics(module: nn.Module) -> bool:
    state = module.__dict__.get(STATE)
    return isinstance(state, ModuleState) and any(tensor.kind == STATISTIC for tensor in state.tensors.values())


@contextmanager
def _averaging(supernet: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    """All modules in evaluation mode but the norms, whose momentum is ours to set; put back at the end."""
    modes = {module: module.training for module in supernet.modules()}
    momenta = {module: module.__dict__["momentum"] for module in norms if "momentum" in module.__dict__}
    try:
        supernet.eval()
        for module in norms:
            module.training = True
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, momentum in momenta.items():
            module.__dict__["momentum"] = momentum


@contextmanager
def _from_scratch(norms: list[nn.Module]) -> Iterator[None]:
    """Starts the target's statistics anew; puts them back if something fails."""
    before = {buffer: buffer.clone() for module in norms for _, buffer in _statistics(module)}
    for module in norms:
        for name, buffer in _statistics(module):
            buffer.fill_(1 if name.endswith("var") else 0)
    try:
        yield
    except BaseException:  # Ctrl-C too: half an average must not pass for statistics; it is raised again
        for buffer, value in before.items():
            buffer.copy_(value)
        raise


def _statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    state: ModuleState = module.__dict__[STATE]
    for tensor in state.tensors.values():
        buffer = module._buffers.get(tensor.name)
        if tensor.kind == STATISTIC and buffer is not None:
            yield tensor.name, buffer


def _feed(supernet: nn.Module, loader: Iterable[Any], device: torch.device, norms: list[nn.Module]) -> int:
    """Runs the supernet on every batch; returns their number."""
    count = 0
    for count, batch in enumerate(loader, start=1):
        for module in norms:
            module.momentum = 1 / count  # type: ignore[assignment]  # a plain average, also where None is not known
        moved = pytree.tree_map_only(Tensor, lambda t: t.to(device), batch)
        if isinstance(moved, Mapping):
            supernet(**moved)
        else:
            supernet(moved[0] if isinstance(moved, (tuple, list)) else moved)
    return count
