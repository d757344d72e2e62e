"""Deep copies of models, also of those that torch refuses to copy: for a computed tensor that a hook left, or for the
buffers of lazy norms.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer
from torch.utils import _pytree as pytree

M = TypeVar("M", bound=nn.Module)

_REGISTERED = ("_parameters", "_buffers", "_modules")


def copy_model(model: M, memo: dict[int, Any] | None = None) -> M:
    """``copy.deepcopy(model, memo)``; tensors with a gradient history (plain attributes) are copied without it."""
    memo = {} if memo is None else memo
    for module in model.modules():
        for buffer in module.buffers(recurse=False):
            if isinstance(buffer, UninitializedBuffer):
                placement: dict[str, Any] = {"device": buffer.device, "dtype": buffer.dtype}  # torch's stub lacks them
                memo[id(buffer)] = UninitializedBuffer(**placement)
        for name, attribute in vars(module).items():
            if name in _REGISTERED or not isinstance(attribute, (Tensor, dict, list, tuple)):
                continue
            for value in pytree.tree_leaves(attribute):
                if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
                    memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
