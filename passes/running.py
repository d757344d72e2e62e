"""Running a model without leaving a trace in it or in the process, and finding the tensors of its output."""

from __future__ import annotations

import gc
import logging
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from netaug_fx.passes.copying import copy_model

SELDOM = (100_000, 20, 20)
"""Thresholds of Python's garbage collection for work that makes objects by the million."""


@contextmanager
def mode_of(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts a model in training or evaluation mode, and every module back as it was."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from logging operators that fail on fake tensors: the exception tells of them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


_lock = threading.Lock()
_under_way = 0
_before = (0, 0, 0)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Looks for garbage less often: passes and exporters make millions of objects, and cycles are rare among them.

    Torch alone brings half a million objects that every full collection goes through; with Python's own thresholds,
    this took 45 % of the time of ``augment`` on MobileNetV2-Tiny. Calls may overlap, in several threads: the last to
    end puts back what the first found.
    """
    global _under_way, _before
    with _lock:
        if _under_way == 0:
            _before = gc.get_threshold()
            if _before[0]:  # zero: switched off by the caller
                gc.set_threshold(*(max(pair) for pair in zip(_before, SELDOM, strict=True)))
        _under_way += 1
    try:
        yield
    finally:
        with _lock:
            _under_way -= 1
            if _under_way == 0:
                gc.set_threshold(*_before)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Leaves the caller's mixed precision, under which a model's own operators are mixed with casts."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def neutral(*, fast_paths: bool = True) -> Iterator[None]:
    """No gradients, no autocast but the model's own, random-number generators put back.

    Without ``fast_paths``, attention runs as plain products.
    """
    state = random.getstate()
    fused = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), without_autocast(), torch.random.fork_rng(devices=[]), ExitStack() as stack:
        if not fast_paths:
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            yield
        finally:
            random.setstate(state)
            torch.backends.mha.set_fastpath_enabled(fused)


def dry_run(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Runs a copy of ``model`` in evaluation mode; raises whatever its forward raises."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    with neutral():
        copy_model(model).eval()(*args, **kwargs)


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors of a model's output: tensors, tuples, lists, dicts, data classes and objects with attributes."""
    found: list[Tensor] = []
    seen: set[int] = set()
    stack = [output]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, (tuple, list, set)):
            stack.extend(reversed(list(item)))
        elif hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(reversed(list(vars(item).values())))
    return found
