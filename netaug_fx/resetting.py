"""Reset: the reset hypothesis of a split model drawn anew, for the next generation of Knowledge Evolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from netaug_fx.errors import InputError
from netaug_fx.passes.drawing import initialise_
from netaug_fx.passes.extract import extract
from netaug_fx.seeded import seeded
from netaug_fx.split import WELS, Split, mixed, put_reset_part_
from netaug_fx.supernet import control, split_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def reset_(
    supernet: nn.Module, *, initialise: Callable[[nn.Module], object] | None = None, reset_norm: bool = False
) -> None:
    """Draws the reset hypothesis anew, in place; the fit weights stay bit for bit ([KE], section 3).

    Random numbers follow from the seed given to ``evolve`` and from how many resets there were, which travels in the
    state_dict; the global generators (torch's, NumPy's and Python's) are left alone.

    Args:
        supernet: What ``evolve`` returned.
        initialise: Called with the dense net, initialises it in place as the model does when it is made; its reset
            hypothesis is then taken over. By default each layer's ``reset_parameters`` (of a layer with
            parametrizations: before it got them); parameters that it does not write (of modules without one, or behind
            a hook's weight normalisation) are drawn uniformly, with the mean and standard deviation that they had when
            the model was split. Frozen parameters stay.
        reset_norm: Reset norms, too: their affine parameters and running statistics (of ``wels``, which has no fit
            channels, the statistics of all channels). By default they go on. Norms are those of torch, and leaves of
            the user's own whose class is called a norm and whose parameters are vectors; any other module of the
            user's is reset like a layer, whatever it computes.

    Raises:
        InputError: it is no supernet of ``evolve``, or within a pass; or ``initialise`` did something else than to fill
            the net that it was given with finite values.
    """
    own, split = control(supernet), split_of(supernet)
    if own.active.widths is not None:
        raise InputError("reset_ was called within dense(): leave the context first")
    before = extract(supernet, dense=True)
    fresh = extract(supernet, dense=True)
    with seeded(mixed(own.seed, own.draws)), torch.no_grad():
        if initialise is None:
            initialise_(fresh, split.first)
        else:
            _initialise_by(initialise, fresh, before)
    if not reset_norm:
        _take_norms_from_(fresh, before)
    _take_frozen_from_(fresh, before)
    _require_finite(fresh, before)
    own.draws += 1
    put_reset_part_(supernet, split, own.seed, fresh)
    if reset_norm and split.method == WELS:
        _take_statistics_from_(supernet, fresh, split)


def _initialise_by(initialise: Callable[[nn.Module], object], net: nn.Module, before: nn.Module) -> None:
    """Lets the user's function fill a net, and holds it against the net of before."""

    def marks() -> list[tuple[int, int]]:
        return [(parameter.data_ptr(), parameter._version) for parameter in net.parameters()]

    remedy = "fill the parameters of the net that it is given, in place, as torch.nn.init's functions do"
    started = marks()
    returned = initialise(net)
    if isinstance(returned, nn.Module) and returned is not net:
        raise InputError(f"initialise returned another {type(returned).__name__}, which is not looked at: {remedy}")
    _require_same_shapes(net, before)
    # Versions do not count what is written through ``.data``.
    if started and started == marks() and all(map(torch.equal, before.parameters(), net.parameters())):
        raise InputError(f"initialise left every parameter as it was: {remedy}")


def _take_norms_from_(net: nn.Module, source: nn.Module) -> None:
    """Norms' own tensors alone: what is below a module of the user's that is a norm itself is not one."""
    with torch.no_grad():
        for module, other in zip(net.modules(), source.modules(), strict=True):
            if _is_norm(module):
                for store in ("_parameters", "_buffers"):
                    for name, tensor in getattr(module, store).items():
                        if tensor is not None:
                            tensor.copy_(getattr(other, store)[name])


def _take_statistics_from_(supernet: nn.Module, fresh: nn.Module, split: Split) -> None:
    """Running statistics are of whole channels, none of which is fit by single weights; pinned norms keep theirs."""
    with torch.no_grad():
        for (path, module), other in zip(supernet.named_modules(), fresh.modules(), strict=True):
            own = {f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)}
            if _is_norm(module) and not (own and own <= split.whole):
                for name, buffer in module.named_buffers(recurse=False):
                    buffer.copy_(other.get_buffer(name))


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
            if not other.requires_grad:
                parameter.copy_(other)


def _require_same_shapes(fresh: nn.Module, before: nn.Module) -> None:
    paths = [[path for path, _ in net.named_modules()] for net in (fresh, before)]
    strange = next(iter({*paths[0]} ^ {*paths[1]}), None)
    if strange is not None:
        did = "added" if strange in paths[0] else "took away"
        raise InputError(f"initialise must fill the parameters of the net it is given, and {did} module {strange!r}")
    ours, theirs = (dict(net.named_parameters(remove_duplicate=False)) for net in (before, fresh))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [list(net[name].shape) if name in net else "nothing" for net in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"initialise must fill the parameters of the net that it is given, and changed {name!r} from "
                f"{shapes[0]} to {shapes[1]}"
            )


def _require_finite(fresh: nn.Module, before: nn.Module) -> None:
    """Values that were not finite before (of a mask, say) are the model's own affair."""

    def tensors(net: nn.Module) -> dict[str, Tensor]:
        return dict(net.named_parameters()) | dict(net.named_buffers())

    theirs = tensors(before)
    for name, value in tensors(fresh).items():
        if name in theirs and bool(theirs[name].isfinite().all()) and not bool(value.isfinite().all()):
            raise InputError(
                f"the initialisation left values in {name!r} that are not finite: the reset_parameters of its module, "
                "or the initialise that reset_ was given, must fill all of it"
            )
