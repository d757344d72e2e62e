"""Look at a model without leaving a trace: modes, buffers, attributes and random-number states come back.

In: models. Out: a block in which they are in eval mode and in their own precision, record no gradients, and do not take
attention's fused fast path, which tracers, exporters and counters cannot see through.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netaug_fx.passes.running import without_autocast


@contextlib.contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Puts the models in eval mode for the block, then restores them, and the random-number states, exactly.

    Restored are each module's ``training`` flag, its attributes with their lists and dicts (a forward that caches a
    tensor would otherwise keep a tracer's fake one), and the buffers, as the same tensors with the same values.
    Parameters are not copied: no forward writes them.
    """
    restorers = [_remember(module) for model in models for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_cuda_devices(*models)), torch.no_grad(), without_autocast():
            torch.backends.mha.set_fastpath_enabled(False)
            for model in models:
                model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for restore in restorers:
            restore()


def _remember(module: nn.Module) -> Callable[[], None]:
    attributes = dict(module.__dict__)
    # Tables of parameters, buffers and hooks (a tracer that fails may leave its hooks behind), and users' own caches.
    tables = [(table, dict(table)) for table in attributes.values() if isinstance(table, dict)]
    lists = [(items, list(items)) for items in attributes.values() if isinstance(items, list)]
    values: list[tuple[Tensor, Tensor, int]] = [
        (buffer, buffer.detach().clone(), buffer._version)
        for buffer in module._buffers.values()
        if buffer is not None and not buffer.is_inference()
    ]

    def restore() -> None:
        _set_back(module.__dict__, attributes)
        for table, entries in tables:
            _set_back(table, entries)
        for items, former in lists:
            items[:] = former
        for buffer, value, version in values:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)

    return restore


def _set_back(live: dict[Any, Any], former: dict[Any, Any]) -> None:
    if list(live) != list(former) or any(live[key] is not value for key, value in former.items()):
        live.clear()
        live.update(former)


def _cuda_devices(*models: nn.Module) -> list[torch.device]:
    tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    return sorted({tensor.device for tensor in tensors if tensor.device.type == "cuda"}, key=str)
