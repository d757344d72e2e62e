"""Deep copies of models, also of those that torch refuses to copy: for a computed tensor that a hook left, or for the
buffers of lazy norms.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer
from torch.utils import _pytree as pytree

from netaug_fx.errors import InputError

M = TypeVar("M", bound=nn.Module)

_REGISTERED = ("_parameters", "_buffers", "_modules")


def copy_model(model: M, memo: dict[int, Any] | None = None) -> M:
    """``copy.deepcopy(model, memo)``; tensors with a gradient history (plain attributes) are copied without it.

    Raises:
        InputError: the model holds something that cannot be copied; names the attribute.
    """
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
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # attributes may be of any class
        raise InputError(
            f"{_uncopied(model) or type(model).__name__} cannot be copied ({type(error).__name__}: {error}); "
            "copy.deepcopy(model) must work: take it off the model, or give its class a __deepcopy__"
        ) from error


def _uncopied(model: nn.Module) -> str:
    """Which plain attribute hinders a copy, in words."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                try:
                    copy.deepcopy(value)
                except Exception:  # as above
                    return (
                        f"attribute {name!r} of {f'module {path!r}' if path else 'the model'} ({type(module).__name__})"
                    )
    return ""
