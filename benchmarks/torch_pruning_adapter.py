"""Torch-Pruning as its own tests and examples use it, on any net, with a record of which entries it left.

In: a net and its inputs. Out: the net pruned, its weights as they were, and for every tensor the numbers of the entries
that are left. The record needs no knowledge of what Torch-Pruning does: once the importance of all groups is known,
every entry is replaced by its own number, and after pruning the numbers are read off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils import _pytree as pytree

from netaug_fx.passes.running import output_tensors

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
PRUNING_RATIO = 0.5
_WRITERS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM)
_PROJECTIONS = ("qkv", "q", "k", "v", "query", "key", "value", "kv")


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Attributes:
        kept: For every parameter and buffer of floating point the numbers of the entries that are left, in the shape
            of what is left; None where pruning computed new values.
        modules: Ids of the modules with a tensor of their own in a group that was pruned; empty if none was.
        by_hand: Modules were told the new width of a head, which may also be a factor in their forwards.
    """

    kept: Mapping[str, Tensor | None]
    modules: frozenset[int]
    by_hand: bool


def call(model: nn.Module, inputs: Inputs) -> Any:
    """One forward on copies of the inputs."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return model(*args, **kwargs)


def prune(model: nn.Module, inputs: Inputs, tell_heads: bool) -> Pruned:
    """Removes the least important half of the channels of every group from ``model``.

    Args:
        model: The net; changed, its weights included: every entry that is left holds its number in the original.
        inputs: Arguments of its forward.
        tell_heads: Whether Torch-Pruning is told which linear layers write heads, and how many, where names tell.
    """
    heads = {module: module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    settings = {"forward_fn": call, "output_transform": _traced_outputs}
    graph = tp.DependencyGraph().build_dependency(model, inputs, **settings)
    ignored = [module for module in model.modules() if isinstance(module, NonDynamicallyQuantizableLinear)]
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=PRUNING_RATIO,
        ignored_layers=ignored + list(_writers_of_outputs(graph)),
        in_channel_groups=dict(heads),
        out_channel_groups=dict(heads),
        num_heads=_projections(model) if tell_heads else {},
        **settings,
    )
    sizes = {name: tensor.numel() for name, tensor in _tensors(model)}
    pruned: set[int] = set()
    numbered = False
    for group in pruner.step(interactive=True):
        if not numbered:  # the importance of all groups is known when the first one comes
            _number(model)
            numbered = True
        targets = [dep.target.module for dep, _ in group]
        parameters = [target for target in targets if isinstance(target, nn.Parameter)]
        pruned.update(
            id(module)
            for module in model.modules()
            if any(module is target for target in targets) or _holds(module, parameters)
        )
        group.prune()
    by_hand = tell_heads and _set_head_widths(model)
    if type(model).__name__ == "VisionTransformer" and isinstance(getattr(model, "conv_proj", None), nn.Conv2d):
        model.hidden_dim = model.conv_proj.out_channels  # its forward compares
    left = {name: _numbers(tensor, sizes.get(name, 0)) for name, tensor in _tensors(model)} if numbered else {}
    return Pruned(left, frozenset(pruned), by_hand)


def _writers_of_outputs(graph: Any) -> Iterator[nn.Module]:
    """Layers whose output channels are, by Torch-Pruning's own graph, channels of the net's outputs.

    One layer of a group is enough: the pruner leaves out every group with an ignored layer among its writers.
    """
    visited: set[int] = set()
    for layer, node in graph.module2node.items():
        if not isinstance(layer, _WRITERS) or id(layer) in visited:
            continue
        reached = [node]
        if node.outputs:
            pruner = graph.get_pruner_of_module(layer)
            every = list(range(pruner.get_out_channels(layer)))
            try:
                group = graph.get_pruning_group(layer, pruner.prune_out_channels, every)
            except Exception:  # the pruner will meet this error itself where it has to
                continue
            reached = [dep.target for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            visited.update(id(one.module) for one in reached)
        if any(not one.outputs or one.type == tp.ops.OPTYPE.OUTPUT for one in reached):
            yield layer


def _projections(model: nn.Module) -> dict[nn.Module, int]:
    """Linear layers that write queries, keys and values, with their numbers of heads, where names tell."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = getattr(module, "num_heads", getattr(module, "heads", None))
        if isinstance(heads, int) and not isinstance(module, nn.MultiheadAttention):
            found |= {
                child: heads
                for name, child in module.named_children()
                if isinstance(child, nn.Linear) and name.removeprefix("to_").removesuffix("_proj") in _PROJECTIONS
            }
    return found


def _set_head_widths(model: nn.Module) -> bool:
    """Tells modules that keep the width of a head as a number what it has become, as the examples do by hand.

    Returns:
        Whether any such number changed.
    """
    projections = _projections(model)
    changed = False
    for module in model.modules():
        for name, layer in module.named_children():
            before = getattr(module, "head_dim", None)
            if layer in projections and isinstance(layer, nn.Linear) and isinstance(before, int):
                width = layer.out_features // (projections[layer] * (3 if "qkv" in name else 1))
                module.head_dim = width  # type: ignore[assignment]
                changed |= width != before
    return changed


def _holds(module: nn.Module, parameters: Sequence[nn.Parameter]) -> bool:
    return any(own is other for own in module.parameters(recurse=False) for other in parameters)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of floating point, tied ones under every name."""
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from ((name, tensor) for name, tensor in tensors if tensor.is_floating_point())


@torch.no_grad()
def _number(model: nn.Module) -> None:
    """Every entry becomes its own number: what is left after pruning then says what was removed."""
    for _, tensor in _tensors(model):
        tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape))


def _numbers(tensor: Tensor, size: int) -> Tensor | None:
    """The entries as numbers below ``size``, each at most once; None if they are something else."""
    values = tensor.detach()
    numbers = values.long()
    known = torch.equal(numbers.to(values.dtype), values) and bool(((numbers >= 0) & (numbers < size)).all())
    return numbers if known and numbers.unique().numel() == numbers.numel() else None


def _traced_outputs(output: Any) -> list[Tensor]:
    return [tensor for tensor in output_tensors(output) if tensor.grad_fn is not None]


@torch.no_grad()
def set_kept(model: nn.Module, reference: nn.Module, kept: Mapping[str, Tensor | None]) -> None:
    """The pruned net gets its weights back; entries that pruning computed anew stay as they are."""
    values = dict(_tensors(reference))
    for name, tensor in _tensors(model):
        labels = kept.get(name)
        if labels is not None and name in values:
            tensor.copy_(values[name].flatten()[labels])


@torch.no_grad()
def zero_removed(reference: nn.Module, kept: Mapping[str, Tensor | None]) -> None:
    """Zeroes the parameters' entries that are not left; tied parameters part, as they do when pruned."""
    for path, module in reference.named_modules():
        for name, parameter in list(module._parameters.items()):
            labels = kept.get(f"{path}.{name}" if path else name)
            if parameter is None or labels is None:
                continue
            values = torch.zeros_like(parameter).flatten()
            values[labels.flatten()] = parameter.flatten()[labels.flatten()]
            module._parameters[name] = nn.Parameter(values.view(parameter.shape), parameter.requires_grad)
