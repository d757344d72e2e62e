"""Multiply-adds of a model at any input resolution, without arithmetic or memory for activations.

In: a model and its inputs. Out: a count by torch's formulas (convolutions, linear layers, matrix products), from one
run on fake tensors in evaluation mode.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from netaug_fx.errors import TraceError
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
        TraceError: the model does not run at this resolution.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {
        id(tensor): mode.from_tensor(tensor, static_shapes=True) for tensor in [*model.parameters(), *model.buffers()]
    }
    copied = copy_model(model, memo).eval()
    args, kwargs = at_resolution(inputs, resolution)
    with neutral(fast_paths=False), quiet(), mode, FlopCounterMode(display=False) as counter:
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: mode.from_tensor(t, static_shapes=True), (args, kwargs))
        try:
            copied(*args, **kwargs)
        except Exception as error:  # the user's code may fail in any way at a size that it was not written for
            where = "" if resolution is None else f" at {resolution} pixels"
            raise TraceError(f"{type(model).__name__} does not run{where}: {type(error).__name__}: {error}") from error
    return int(counter.get_total_flops()) // 2


def at_resolution(inputs: Inputs, resolution: int | None) -> Inputs:
    """The inputs with zero images of another side; tensors of other than four dimensions stay."""
    if resolution is None:
        return inputs
    resized: Inputs = pytree.tree_map_only(
        Tensor, lambda t: t.new_zeros((*t.shape[:2], resolution, resolution)) if t.dim() == 4 else t, inputs
    )
    return resized
