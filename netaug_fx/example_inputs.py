"""Finds an input for a model that comes without one, and normalises the inputs that users give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.errors import InputError
from netaug_fx.passes.infer import Inputs, is_lazy
from netaug_fx.passes.running import dry_run, mode_of

_COMMON_SIZES = {1: (64, 256, 1024), 2: (64, 224, 32, 28, 8, 299), 3: (16, 32, 64)}


def normalise_inputs(example_inputs: Any) -> Inputs:
    """Positional and keyword arguments from what the user gave.

    A tensor is the only argument; a tuple or list holds positional arguments; a mapping holds keyword arguments; a
    pair of a tuple and a mapping holds both.

    Raises:
        InputError: there is no tensor in it.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
        if len(args) == 2 and isinstance(args[0], tuple) and isinstance(args[1], Mapping):
            args, kwargs = args[0], dict(args[1])
    else:
        args = (example_inputs,)
    if not _tensors((args, kwargs)):
        raise InputError(
            "example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
            f"not {example_inputs!r}"
        )
    return args, kwargs


def find_example_inputs(model: nn.Module) -> Inputs:
    """An input for ``model``: from what it declares, else from its first layer and a few common sizes.

    Looked at in this order: ``example_input_array`` (Lightning), ``example_input_shape`` (without batch),
    ``default_cfg["input_size"]`` (timm), ``dummy_inputs`` (transformers), the first layer's input channels.

    Raises:
        InputError: none of these gives an input that the model runs on.
    """
    failure = ""
    declared = next(_declared(model), None)
    if declared is not None:
        return declared
    for candidate in _guessed(model):
        try:
            dry_run(model, candidate)
        except Exception as error:  # the next candidate may fit; the last failure is reported
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            return candidate
    tried = f" (the last one tried failed with {failure})" if failure else ""
    raise InputError(
        f"no example input for {type(model).__name__} could be found{tried}; "
        "give one: example_inputs=torch.randn(2, 3, 224, 224), a tuple of arguments, or a dict of keyword arguments"
    )


def resolve_inputs(model: nn.Module, example_inputs: Any) -> Inputs:
    """The given inputs, checked for their device, or found ones.

    Raises:
        InputError: they are on another device than the model, or none could be found.
    """
    if example_inputs is None:
        return find_example_inputs(model)
    inputs = normalise_inputs(example_inputs)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for tensor in _tensors(inputs):
        if tensor.device != device:
            raise InputError(
                f"example_inputs are on {tensor.device}, the model on {device}: move them with .to({str(device)!r})"
            )
    return inputs


def materialise(model: nn.Module, example_inputs: Any) -> None:
    """Runs ``model`` once where it has lazy modules, which gives them their parameters, as any first run would.

    Raises:
        InputError: it is lazy, and there are no inputs to run it on, or it does not run on them.
    """
    lazy = next(((path, module) for path, module in model.named_modules() if is_lazy(module)), None)
    if lazy is None:
        return
    where = f"module {lazy[0]!r} ({type(lazy[1]).__name__}) is lazy"
    inputs = next(_declared(model), None) if example_inputs is None else resolve_inputs(model, example_inputs)
    if inputs is None:
        raise InputError(f"{where}: give example_inputs, on which the model is run once, so that its parameters exist")
    try:
        dry_run(model, inputs)
    except Exception as error:  # the user's code may fail in any way; the model itself has not been touched yet
        raise InputError(
            f"{where}, and the model does not run on the example inputs: {type(error).__name__}: {error}"
        ) from error
    args, kwargs = inputs
    with mode_of(model, training=False), torch.no_grad():
        model(*args, **kwargs)


def checked_model(model: Any) -> nn.Module:
    """``model`` itself, if it is a module.

    Raises:
        InputError: it is not.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}: give an instance" if isinstance(model, type) else f"{type(model).__name__}"
        raise InputError(f"model must be a torch.nn.Module, not {what}")
    return model


def _declared(model: nn.Module) -> Iterator[Inputs]:
    declared = getattr(model, "example_input_array", None)
    if declared is not None:
        yield normalise_inputs(declared)
    shape = getattr(model, "example_input_shape", None) or _timm_shape(model)
    if shape is not None:
        yield (_random(model, shape),), {}
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping):
        yield (), dict(dummy)


def _guessed(model: nn.Module) -> Iterator[Inputs]:
    for shape in _first_shapes(model):
        yield (_random(model, shape),), {}


def _random(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A batch of two: training-mode norms need more than one value a channel."""
    first = next((p for p in model.parameters() if p.dtype.is_floating_point), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, generator=generator).to(device=first.device, dtype=first.dtype)


def _timm_shape(model: nn.Module) -> tuple[int, ...] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        found = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if found is not None:
            return tuple(int(n) for n in found)
    return None


def _first_shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            rank = len(module.kernel_size)
            yield from ((module.in_channels, *([size] * rank)) for size in _COMMON_SIZES[rank])
            return
        if isinstance(module, nn.Linear):
            yield (module.in_features,)
            return
        if isinstance(module, (nn.Embedding, nn.modules.rnn.RNNBase)):
            return


def _tensors(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
