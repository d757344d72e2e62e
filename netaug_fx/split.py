"""Split: what a supernet of ``evolve`` knows of its two hypotheses, and how values go between them.

The fit hypothesis is the target, with the target's own tensors; the reset hypothesis is in the extra blocks (or, split
weight by weight, where the masks are False). ([KE]: Taha et al., Knowledge Evolution in Neural Networks, CVPR 2021.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.assembly import ElasticTensor, assemble, disassemble, selections
from netaug_fx.elastic import STATE, Active, ModuleState
from netaug_fx.errors import InputError
from netaug_fx.passes.layout import Widths, shape

KELS, WELS = "kels", "wels"
Moments = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Original:
    """What the dense net has of a module where the slim net has something else.

    Attributes:
        cls: Its class.
        attributes: Plain attributes, such as the sizes that a layer tells of itself.
        forward: The method that its instance chose for its forward (``self.forward = self.other``), if it did.
    """

    cls: type[nn.Module]
    attributes: Mapping[str, Any]
    forward: Callable[..., Any] | None


@dataclass(frozen=True)
class Split:
    """How a model was split.

    Attributes:
        method: ``kels``, by channels, or ``wels``, by single weights.
        keep: The part that is fit.
        first: Mean and standard deviation of each parameter when the model was split.
        originals: By path, modules that are others in the slim net.
        whole: For ``wels``, parameters that are fit as a whole.
        mixing: Where a statistic spans channels, so that the slim net differs from the dense one without its reset
            weights; empty if nowhere.
    """

    method: str
    keep: float
    first: Moments
    originals: Mapping[str, Original] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    mixing: str = ""


def originals(model: nn.Module, slim: nn.Module) -> dict[str, Original]:
    """The modules of a model that are others in its slim net, which was made of it a moment ago."""
    found = {}
    for (path, module), other in zip(model.named_modules(), list(slim.modules()), strict=True):
        theirs = vars(other)
        attributes = {k: v for k, v in vars(module).items() if _is_size(v) and k in theirs and theirs[k] != v}
        if attributes or type(module) is not type(other):
            chosen = None if "forward" in theirs else vars(module).get("forward")
            if chosen is not None and not isinstance(chosen, MethodType):
                attributes["forward"] = chosen
            forward = chosen.__func__ if isinstance(chosen, MethodType) else None
            found[path] = Original(type(module), attributes, forward)
    return found


def _is_size(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(each, (int, type(None))) for each in values)


def dense_tensors(supernet: nn.Module) -> dict[int, Tensor]:
    """The dense net's tensors with their present values, by the id of the fit part of each."""
    found: dict[int, Tensor] = {}
    for module, tensor in elastic_tensors(supernet):
        base = module._parameters.get(tensor.name, module._buffers.get(tensor.name))
        if base is None or not tensor.dims or id(base) in found:
            continue
        blocks = [registered(module, extra).detach() for extra in tensor.extras]
        selected = selections(tensor, _widest(module), _widest(module), base.device)
        value = assemble(base.detach(), blocks, tensor, selected)
        found[id(base)] = nn.Parameter(value, base.requires_grad) if isinstance(base, nn.Parameter) else value
    return found


def is_fit(split: Split, seed: int, name: str, parameter: Tensor) -> Tensor:
    """Of ``wels``: True where a weight of a parameter is fit, which follows from the seed and the parameter's name."""
    if name in split.whole:
        return torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    generator = torch.Generator().manual_seed(mixed(seed, name))
    return (torch.rand(parameter.shape, generator=generator) < split.keep).to(parameter.device)


def mixed(*parts: int | str) -> int:
    """A seed that follows from all parts, in each of its bits: torch's generator on CPUs takes the lowest 32 alone."""
    return random.Random(repr(parts)).getrandbits(63)


def put_reset_part_(supernet: nn.Module, split: Split, seed: int, dense: nn.Module) -> None:
    """Takes over the reset hypothesis of a dense net; the fit one stays as it is."""
    tensors = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for module, tensor in elastic_tensors(supernet):
            _, blocks = _disassembled(module, tensor, tensors[tensor.full_name])
            for name, block in zip(tensor.extras, blocks, strict=True):
                registered(module, name).copy_(block)
        if split.method == WELS:
            for name, parameter in supernet.named_parameters():
                if name in split.first:
                    fit = is_fit(split, seed, name, parameter)
                    parameter.copy_(torch.where(fit, parameter, tensors[name]))


def keep_shared_(supernet: nn.Module, active: Active) -> None:
    """Writes what a dense pass left in its buffers (norm statistics, counters) back to where they are kept.

    Raises:
        InputError: a buffer that follows the widths was replaced by something that cannot be divided.
    """
    with torch.no_grad():
        for module, tensor in elastic_tensors(supernet):
            if tensor.full_name not in active.scratch:
                continue
            written = active.scratch[tensor.full_name]
            if not tensor.dims:
                _keep_(module, tensor.name, written)
                continue
            _require_dividable(module, tensor, written)
            base, blocks = _disassembled(module, tensor, written)
            for name, value in zip((tensor.name, *tensor.extras), (base, *blocks), strict=True):
                registered(module, name).copy_(value)


def _keep_(module: nn.Module, name: str, written: Any) -> None:
    """In place where it can be, as others may hold the buffer."""
    own = module._buffers[name]
    if own is None or written is None or (own.shape, own.dtype) != (written.shape, written.dtype):
        module._buffers[name] = written
    else:
        own.copy_(written)


def _require_dividable(module: nn.Module, tensor: ElasticTensor, written: Any) -> None:
    expected = shape(tensor.layouts, _widest(module))
    if not isinstance(written, Tensor) or tuple(written.shape) != tuple(expected):
        found = f"one of shape {list(written.shape)}" if isinstance(written, Tensor) else repr(written)
        path = tensor.full_name.rpartition(".")[0]
        remedy = f"pin={[path]!r} keeps the module whole, and" if path else "keep it in a module of its own, or"
        raise InputError(
            f"a forward replaced the buffer {tensor.full_name!r} of shape {list(expected)} by {found}, which cannot be "
            f"divided between the fit hypothesis and the reset one: {remedy} method='wels' splits any model"
        )


def elastic_tensors(supernet: nn.Module) -> Iterator[tuple[nn.Module, ElasticTensor]]:
    """All tensors that follow the widths, with the modules that hold them; tied ones as often as they are held."""
    for module in supernet.modules():
        state = module.__dict__.get(STATE)
        if isinstance(state, ModuleState):
            yield from ((module, tensor) for tensor in state.tensors.values())


def registered(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer itself, whatever the active widths."""
    tensor = module._parameters[name] if name in module._parameters else module._buffers[name]
    assert tensor is not None
    return tensor


def _widest(module: nn.Module) -> Widths:
    state: ModuleState = module.__dict__[STATE]
    return state.active.widest


def _disassembled(module: nn.Module, tensor: ElasticTensor, full: Tensor) -> tuple[Tensor, list[Tensor]]:
    return disassemble(full.detach(), registered(module, tensor.name).shape, tensor, _widest(module))
