"""Nested inputs and outputs as flat lists of tensors with stable names, for tools that take nothing else.

In: a model and example inputs (a tensor, a tuple of arguments, a dict of keyword arguments; each may nest tuples,
lists, dicts and dataclasses). Out: a ``FlatModel``, which maps tensors to a tuple of tensors.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where the tensor of this index goes."""

    index: int


class FlatModel(nn.Module):
    """A model seen as a function from tensors to a tuple of tensors; the model itself is ``self.model``."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        named = list(named_tensors(_by_parameter_name(model, args, kwargs)))
        self.input_names = unique_names([name for name, _ in named], fallback="input")
        self._tensors: list[Tensor] = []
        self._structure = _take_out((args, dict(kwargs)), self._tensors)
        self.training = model.training  # self.train() would set the model's modes

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The example inputs' tensors in the order of the arguments."""
        return tuple(self._tensors)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Calls the model with the given tensors in the places of the example's."""
        return tuple(tensor for _, tensor in named_tensors(self.call(*tensors)))

    def call(self, *tensors: Tensor) -> Any:
        """Calls the model with the given tensors and returns what it returns, nested as it is."""
        args, kwargs = self.arguments(*tensors)
        return self.model(*args, **kwargs)

    def arguments(self, *tensors: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example's arguments with the given tensors in the places of its own."""
        args, kwargs = _put_back(self._structure, tensors)
        return args, kwargs


def flat_model(model: nn.Module, example_inputs: Any) -> FlatModel:
    """The model as a function of the tensors in ``example_inputs``.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple (or list) of positional arguments, a dict of keyword arguments, or None
            to look for an input that fits the model.

    Raises:
        InputError: ``model`` is not a module, the inputs hold no tensor or are on another device, or none was found.
    """
    # Imported late: that module runs passes itself.
    from netaug_fx.example_inputs import checked_model, resolve_inputs

    args, kwargs = resolve_inputs(checked_model(model), example_inputs)
    return FlatModel(model, args, kwargs)


def named_tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested tuples, lists, dicts and dataclasses, each with its path ("boxes", "features_0")."""
    if isinstance(value, Tensor):
        yield prefix, value
        return
    for key, child in _children(value):
        yield from named_tensors(child, f"{prefix}_{key}" if prefix else key)


def unique_names(names: list[str], *, fallback: str, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names fit for ONNX: no empty one, none twice, none of ``taken``; "0" becomes "<fallback>_0"."""
    found: list[str] = []
    for name in names:
        name = re.sub(r"[^0-9A-Za-z_.]", "_", name)
        if not name or name[0].isdigit():
            name = f"{fallback}_{name}" if name else fallback
        if name in taken:
            name = f"{fallback}_{name}"
        number, base = 1, name
        while name in found or name in taken:
            name, number = f"{base}_{number}", number + 1
        found.append(name)
    return tuple(found)


def batched(tensors: tuple[Tensor, ...]) -> tuple[bool, ...]:
    """Which inputs have the batch as their first dimension: those whose first size is that of the first input."""
    size = next((tensor.shape[0] for tensor in tensors if tensor.dim() > 0), None)
    return tuple(tensor.dim() > 0 and tensor.shape[0] == size for tensor in tensors)


def with_batch(tensors: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """The same inputs with ``size`` samples: the first ones, repeated as often as needed."""
    index = torch.arange(size)
    return tuple(
        tensor[index.to(tensor.device) % tensor.shape[0]] if has_batch and tensor.shape[0] else tensor
        for tensor, has_batch in zip(tensors, batched(tensors), strict=True)
    )


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return list(zip(fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(index), child) for index, child in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _rebuilt(value: Any, children: list[Any]) -> Any:
    if isinstance(value, Mapping):
        pairs = dict(zip(value, children, strict=True))
        return pairs if type(value) is dict else type(value)(pairs)  # type: ignore[call-arg]
    if hasattr(value, "_fields") and isinstance(value, tuple):
        return type(value)(*children)
    if isinstance(value, (tuple, list)):
        return type(value)(children)
    names = [field.name for field in dataclasses.fields(value)]
    return dataclasses.replace(value, **dict(zip(names, children, strict=True)))


def _take_out(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    children = _children(value)
    return _rebuilt(value, [_take_out(child, tensors) for _, child in children]) if children else value


def _put_back(value: Any, tensors: tuple[Tensor, ...]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.index]
    children = _children(value)
    return _rebuilt(value, [_put_back(child, tensors) for _, child in children]) if children else value


def _by_parameter_name(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments under the names of the forward's parameters, where they have one, in the order given."""
    positional = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    unnamed = ["input" if index == 0 else f"input_{index}" for index in range(len(args))]
    return {**dict(zip([*positional[: len(args)], *unnamed[len(positional) :]], args, strict=True)), **kwargs}
