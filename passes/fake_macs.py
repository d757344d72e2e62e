"""Multiply-adds of a model at any input resolution, without arithmetic or memory for activations.

In: a model and its inputs. Out: a count by torch's formulas (convolutions, linear layers, matrix products), from one
run on fake tensors in evaluation mode; on real ones, where values decide what runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from netaug_fx.errors import InputError, TraceError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.infer import Inputs
from netaug_fx.passes.running import neutral, quiet


def fake_macs(model: nn.Module, inputs: Inputs, resolution: int | None = None) -> int:
    """Multiply-adds of one forward, for the whole batch of the inputs.

    Args:
        model: Any module; it is not changed.
        inputs: Positional and keyword arguments of its forward.
        resolution: Side of the square images that take the place of those in ``inputs``; None takes them as they are.

    Raises:
        InputError: the images are not square, and another resolution was asked for.
        TraceError: the model does not run at this resolution.
    """
    given = at_resolution(inputs, resolution)
    try:
        try:
            return _count(model, given, FakeTensorMode(allow_non_fake_inputs=True))
        except (DataDependentOutputException, DynamicOutputShapeException):
            return _count(model, given, None)
    except Exception as error:  # the user's code may fail in any way at a size that it was not written for
        where = "" if resolution is None else f" at {resolution} pixels"
        raise TraceError(f"{type(model).__name__} does not run{where}: {type(error).__name__}: {error}") from error


@torch.no_grad()
def _count(model: nn.Module, inputs: Inputs, fake: FakeTensorMode | None) -> int:
    """Multiply-adds of one forward of a copy."""

    def taken(tensor: Tensor) -> Tensor:
        return tensor.clone() if fake is None else fake.from_tensor(tensor, static_shapes=True)

    tensors = [] if fake is None else [*model.parameters(), *model.buffers()]
    copied = copy_model(model, {id(tensor): taken(tensor) for tensor in tensors}).eval()
    with ExitStack() as stack:
        for each in (neutral(fast_paths=False), _countable(copied), quiet(), fake or nullcontext()):
            stack.enter_context(each)
        args, kwargs = pytree.tree_map_only(Tensor, taken, inputs)
        counter = stack.enter_context(FlopCounterMode(display=False))
        copied(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """oneDNN runs a whole recurrent layer as one operator, which the counter does not know (as in ``macs``)."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to switch oneDNN off tells of GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext():
            yield


def image_sides(inputs: Inputs) -> tuple[int, int] | None:
    """Height and width of the images in a net's inputs; None without images.

    Images are tensors of four dimensions; masks (of bool) are none. Where they are of several sizes, the first.
    """
    return next((_sides(t) for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and _is_picture(t)), None)


def _is_picture(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.dtype is not torch.bool


def _sides(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def at_resolution(inputs: Inputs, resolution: int | None) -> Inputs:
    """The inputs with zero images of another side; tensors that are no images, or of another size, stay.

    Raises:
        InputError: the images are not square.
    """
    sides = image_sides(inputs)
    if resolution is None or sides is None:
        return inputs
    if sides[0] != sides[1]:
        raise InputError(f"images of {sides[0]} x {sides[1]} are not square, and have no side that could be another")
    resized: Inputs = pytree.tree_map_only(
        Tensor,
        lambda t: t.new_zeros((*t.shape[:2], resolution, resolution)) if _is_picture(t) and _sides(t) == sides else t,
        inputs,
    )
    return resized
