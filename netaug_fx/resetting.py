"""Reset: the reset hypothesis of a split model drawn anew, for the next generation of Knowledge Evolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.random import fork_rng

from netaug_fx.errors import InputError
from netaug_fx.passes.drawing import initialise_
from netaug_fx.split import dense_net, put_reset_part_
from netaug_fx.supernet import control, split_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def reset_(
    supernet: nn.Module, *, initialise: Callable[[nn.Module], object] | None = None, reset_norm: bool = False
) -> None:
    """Draws the reset hypothesis anew, in place; the fit weights stay bit for bit ([KE], section 3).

    Random numbers follow from the seed given to ``evolve`` and from how many resets there were, which travels in the
    state_dict; the global generators are left alone.

    Args:
        supernet: What ``evolve`` returned.
        initialise: Called with the dense net, initialises it in place as the model does when it is made; its reset
            hypothesis is then taken over. By default each layer's ``reset_parameters``; parameters that it does not
            write (of modules without one, or behind weight normalisation) are drawn uniformly, with the mean and
            standard deviation that they had when the model was split. Frozen parameters stay.
        reset_norm: Reset norms, too: their affine parameters and running statistics. By default they go on.

    Raises:
        InputError: it is no supernet of ``evolve``, it is within a pass, or ``initialise`` gave a tensor another shape.
    """
    own, split = control(supernet), split_of(supernet)
    if own.active.widths is not None:
        raise InputError("reset_ was called within dense(): leave the context first")
    before = dense_net(supernet, split)
    fresh = dense_net(supernet, split)
    with fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed((own.seed * 2**32 + own.draws) % 2**63)
        if initialise is None:
            initialise_(fresh, split.first)
        else:
            initialise(fresh)
    _require_same_shapes(fresh, before)
    if not reset_norm:
        _take_norms_from_(fresh, before)
    _take_frozen_from_(fresh, before)
    own.draws += 1
    put_reset_part_(supernet, split, fresh)


def _take_norms_from_(net: nn.Module, source: nn.Module) -> None:
    """Norms' own tensors alone: what is below a module of the user's that is a norm itself is not one."""
    with torch.no_grad():
        for module, other in zip(net.modules(), source.modules(), strict=True):
            if _is_norm(module):
                for store in ("_parameters", "_buffers"):
                    for name, tensor in getattr(module, store).items():
                        if tensor is not None:
                            tensor.copy_(getattr(other, store)[name])


def _is_norm(module: nn.Module) -> bool:
    """A norm of torch, or a leaf of the user's own that is called one and scales and shifts by vectors."""
    if isinstance(module, _NORMS):
        return True
    own = list(module.parameters(recurse=False))
    leaf = next(module.children(), None) is None
    return leaf and "norm" in type(module).__name__.lower() and bool(own) and all(p.dim() <= 1 for p in own)


def _take_frozen_from_(net: nn.Module, source: nn.Module) -> None:
    """What is not trained is not drawn anew: nothing would make it right again."""
    with torch.no_grad():
        for parameter, other in zip(net.parameters(), source.parameters(), strict=True):
            if not parameter.requires_grad:
                parameter.copy_(other)


def _require_same_shapes(fresh: nn.Module, before: nn.Module) -> None:
    shapes = [
        {name: tuple(p.shape) for name, p in net.named_parameters(remove_duplicate=False)} for net in (before, fresh)
    ]
    for name, shape in shapes[0].items():
        if shapes[1].get(name) != shape:
            raise InputError(
                f"initialise must fill the parameters of the net that it is given, and changed {name!r} from "
                f"{list(shape)} to {list(shapes[1].get(name, ()))}"
            )
