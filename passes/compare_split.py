"""The slim net against the dense net that it was cut out of.

In: the slim net and the supernet that ``evolve`` returned. Out: a ``Check``. With the weights zeroed that lead from the
reset hypothesis to the fit one, the dense net computes what the slim net does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from netaug_fx.passes.compare_outputs import distance
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.extract import extract
from netaug_fx.passes.report import Check
from netaug_fx.passes.running import output_tensors
from netaug_fx.passes.untouched import untouched
from netaug_fx.split import elastic_tensors, registered
from netaug_fx.supernet import split_of

NAME = "fit hypothesis"


def check_fit(slim: nn.Module, supernet: nn.Module, inputs: Any, tolerance: float) -> Check:
    """Whether the slim net has the fit weights, and gives the outputs of the dense net without the reset ones."""
    split = split_of(supernet)
    own, theirs = slim.state_dict(), supernet.state_dict()
    other = [key for key, value in own.items() if isinstance(value, torch.Tensor) and not _equal(value, theirs[key])]
    if other:
        return Check(NAME, False, "", "the supernet's fit weights", f"other values, first in {other[0]!r}")
    if split.method == "wels" or split.mixing:
        why = "single weights were split" if split.method == "wels" else f"a statistic spans channels ({split.mixing})"
        return Check(NAME, True, f"the fit weights bit for bit; outputs not applicable: {why}")
    dense = copy_model(supernet)
    with torch.no_grad():
        for module, tensor in elastic_tensors(dense):
            for dim, extra in zip(tensor.dims, tensor.extras, strict=True):
                if dim in tensor.contracted:
                    registered(module, extra).zero_()
    outputs = [_outputs(net, inputs) for net in (slim, extract(dense, dense=True))]
    apart = max((distance(a, b) for a, b in zip(*outputs, strict=True)), default=0.0)
    detail = f"the fit weights bit for bit; outputs of the dense net without the reset weights, to {apart:.1e}"
    return Check(NAME, apart <= tolerance, detail, f"outputs within {tolerance:g}", f"{apart:.1e} of the largest value")


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _outputs(net: nn.Module, inputs: Any) -> list[Any]:
    args, kwargs = inputs
    with torch.no_grad(), untouched(net):
        torch.manual_seed(0)
        found = output_tensors(net(*args, **kwargs))
        return [(tensor.double() if tensor.is_floating_point() else tensor).cpu().numpy() for tensor in found]
