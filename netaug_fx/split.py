"""Split: what a supernet of ``evolve`` knows of its two hypotheses, and the dense net that they make together.

The fit hypothesis is the target, with the target's own tensors; the reset hypothesis is in the extra blocks (or, split
weight by weight, where the masks are False). ([KE]: Taha et al., Knowledge Evolution in Neural Networks, CVPR 2021.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from netaug_fx.assembly import SHARED, ElasticTensor, assemble, disassemble
from netaug_fx.elastic import STATE, Active, ModuleState
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.layout import Widths


@dataclass(frozen=True)
class Split:
    """How a model was split.

    Attributes:
        method: ``kels``, by channels, or ``wels``, by single weights.
        keep: The part that is fit.
        reference: The dense model without values, on the meta device.
        first: Mean and standard deviation of each parameter when the model was split.
        masks: For ``wels``, by name of parameter: True where a weight is fit.
        mixing: Where a statistic spans channels, so that the slim net differs from the dense one without its reset
            weights; empty if nowhere.
    """

    method: str
    keep: float
    reference: nn.Module
    first: Mapping[str, tuple[float, float]]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    mixing: str = ""


def without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device; tied tensors stay tied."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    memo |= {id(buffer): buffer.detach().to("meta") for buffer in model.buffers()}
    return copy_model(model, memo)


def dense_net(supernet: nn.Module, split: Split) -> nn.Module:
    """The dense net with its present weights, as a plain module of the model's own class."""
    modules = dict(supernet.named_modules(remove_duplicate=False))
    memo: dict[int, object] = {}
    tensors = [*split.reference.named_parameters(), *split.reference.named_buffers()]
    for full_name, empty in tensors:
        path, _, name = full_name.rpartition(".")
        value = _at_widest(modules[path], name)
        memo[id(empty)] = nn.Parameter(value, empty.requires_grad) if isinstance(empty, nn.Parameter) else value
    net = copy_model(split.reference, memo)
    for path, module in net.named_modules():
        module.training = modules[path].training
    return net


def put_reset_part_(supernet: nn.Module, split: Split, dense: nn.Module) -> None:
    """Takes over the reset hypothesis of a dense net; the fit one stays as it is."""
    tensors = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for module, tensor in elastic_tensors(supernet):
            _, blocks = _disassembled(module, tensor, tensors[tensor.full_name])
            for name, block in zip(tensor.extras, blocks, strict=True):
                registered(module, name).copy_(block)
        for name, parameter in supernet.named_parameters():
            if name in split.masks:
                fit = split.masks[name].to(parameter.device)
                parameter.copy_(torch.where(fit, parameter, tensors[name]))


def keep_shared_(supernet: nn.Module, active: Active) -> None:
    """Writes what a dense pass left in its buffers (norm statistics, counters) back to where they are kept."""
    with torch.no_grad():
        for module, tensor in elastic_tensors(supernet):
            written = active.scratch.get(tensor.full_name) if tensor.kind == SHARED else None
            if written is None:
                continue
            base, blocks = _disassembled(module, tensor, written)
            if base.shape == registered(module, tensor.name).shape:  # not a cache that took another size
                for name, value in zip((tensor.name, *tensor.extras), (base, *blocks), strict=True):
                    registered(module, name).copy_(value)


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


def _at_widest(module: nn.Module, name: str) -> Tensor:
    base = registered(module, name).detach()
    state = module.__dict__.get(STATE)
    tensor = state.tensors.get(name) if isinstance(state, ModuleState) else None
    if tensor is None or not tensor.dims:
        return base.clone()
    blocks = [registered(module, extra).detach() for extra in tensor.extras]
    return assemble(base, blocks, tensor, _widest(module), _widest(module))
