"""Observe: what a model gives for real, before anything is assumed of it.

In: the model and its inputs. Out: an ``Observed``: its outputs, its buffers after them, and the operators that ran, in
evaluation and in training mode, with attention as plain products. ``infer`` holds its run on fake tensors against the
operators, ``check_real`` holds the supernet against the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from netaug_fx.errors import TraceError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.rules import tensor_leaves
from netaug_fx.passes.running import neutral, output_tensors

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of the model's forward."""


@dataclass(frozen=True)
class Observed:
    """What a model gives for real, by training mode.

    Attributes:
        outputs: The tensors of its output.
        buffers: Its buffers afterwards, by name.
        operators: Names of the operators that gave tensors, in order.
    """

    outputs: Mapping[bool, list[Tensor]]
    buffers: Mapping[bool, dict[str, Tensor]]
    operators: Mapping[bool, tuple[str, ...]]


def observe(model: nn.Module, inputs: Inputs) -> Observed:
    """Runs a copy of the model on real tensors, in evaluation and in training mode.

    To be done before anything runs on fake tensors: functions that remember their results for the whole process
    (``functools.lru_cache``) would otherwise remember fake ones.

    Raises:
        TraceError: the model does not run; fake tensors let pass some of what real ones do not (mixed dtypes).
    """
    copied = copy_model(model)
    outputs, buffers, operators = {}, {}, {}
    for training in (False, True):
        names = Names()
        try:
            outputs[training] = outputs_of(copied, inputs, training, names)
        except Exception as error:  # the user's code may fail in any way
            raise TraceError(
                f"the model does not run on the example inputs in {mode_name(training)} mode: "
                f"{type(error).__name__}: {error}. Check the shape, dtype and device of example_inputs"
            ) from error
        named = copied.named_buffers(remove_duplicate=False)
        buffers[training] = {name: buffer.detach().clone() for name, buffer in named}
        operators[training] = tuple(names.seen)
    return Observed(outputs, buffers, operators)


class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the names of the operators that give tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if tensor_leaves(out):
            self.seen.append(str(func))
        return out


def mode_name(training: bool) -> str:
    """A training mode in words."""
    return "training" if training else "evaluation"


def outputs_of(net: nn.Module, inputs: Inputs, training: bool, names: Names | None = None) -> list[Tensor]:
    """The tensors of one output, from fixed random numbers; attention runs as it does in ``infer``."""
    net.train(training)
    with neutral(fast_paths=False):
        torch.manual_seed(0)
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
        with names or nullcontext():
            return output_tensors(net(*args, **kwargs))
