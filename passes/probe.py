"""Probe: what a net computes on noise, to tell whether another one computes the same.

In: a model and its inputs. Out: these inputs with noise in the place of what says nothing, or how far the outputs of
two models are apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.passes.compare_outputs import Array, distance
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.infer import Inputs
from netaug_fx.passes.running import neutral, output_tensors


def drawn(inputs: Inputs) -> Inputs:
    """The inputs with noise for floating tensors that hold one value all over, as ``torch.zeros`` does.

    Of those, nets that differ give the same outputs, and batches of them have no statistics.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel() or bool((tensor != tensor.flatten()[0]).any()):
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    noise: Inputs = pytree.tree_map_only(Tensor, draw, inputs)
    return noise


def outputs(model: nn.Module, inputs: Inputs) -> list[Array]:
    """All tensors that a model gives in evaluation mode; it is not changed. Raises whatever its forward raises."""
    copied = copy_model(model).eval()
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    with neutral():
        torch.manual_seed(0)
        found = output_tensors(copied(*args, **kwargs))
    return [array(tensor) for tensor in found]


def array(tensor: Tensor) -> Array:
    """A tensor's values for ``compare_outputs.distance``."""
    values = tensor.detach()
    return (values.double() if values.is_floating_point() else values).cpu().numpy()


def apart(model: nn.Module, other: nn.Module, inputs: Inputs) -> float:
    """The largest difference of two models' outputs on noise, as a part of the largest output."""
    noise = drawn(inputs)
    pairs = zip(outputs(model, noise), outputs(other, noise), strict=True)
    return max((distance(ours, theirs) for ours, theirs in pairs), default=0.0)
