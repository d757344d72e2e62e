"""A supernet held against all invariants, and what can be asked of its layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import netaug_fx
from netaug_fx.supernet import control
from tests import invariants


def augmented(model: nn.Module, *inputs: Tensor) -> netaug_fx.Supernet:
    """The supernet of a net with random statistics, held against all invariants."""
    given: Any = (inputs, {})
    supernet = netaug_fx.augment(model, 3, example_inputs=inputs)
    invariants.assert_target_is_the_model(supernet, model, given)
    invariants.assert_extract_restores(supernet, model, given)
    invariants.assert_a_step_trains_everything(supernet, given)
    invariants.assert_zeroed_extras_give_the_target(supernet, given)
    return supernet


def grows(supernet: nn.Module, name: str) -> bool:
    return any(tensor.full_name == name and tensor.dims for _, tensor in invariants.elastic_tensors(supernet))


def reasons(supernet: nn.Module, name: str) -> str:
    return " ".join(f"{pin.reason} {pin.op}" for pin in control(supernet).pins if pin.tensor == name)
