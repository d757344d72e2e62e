"""The most memory that tensors hold at once while something runs: counted operator by operator, the same every time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Storages(TorchDispatchMode):
    """Bytes of the storages that operators have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, given)
        return result

    def _see(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known or storage._cdata in given:  # what is given and not known was there before
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that tensors made during ``call`` hold at once; what was there before is not counted."""
    with torch.random.fork_rng(devices=[]), _Storages() as storages:
        call()
    return storages.most
