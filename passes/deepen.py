"""Deepen: one more block in a stage, behind one that gives back the shape that it takes.

In: a model, the path of such a block and an input. Out: a copy of the model with a block of the same kind behind it,
fresh, or so that it changes nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.random import fork_rng
from torch.utils import _pytree as pytree

from netaug_fx.errors import CheckError, InputError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.drawing import first_moments, initialise_
from netaug_fx.passes.infer import Inputs
from netaug_fx.passes.running import neutral, output_tensors
from netaug_fx.passes.stages import repeatable_blocks

FRESH, IDENTITY = "fresh", "identity"
_TOLERANCE = 1e-5


def insert_block(model: nn.Module, path: str, inputs: Inputs, *, how: str = FRESH, seed: int = 0) -> nn.Module:
    """A copy of a model with one more block, of the kind of the one at ``path`` and right behind it.

    In an ``nn.Sequential`` or ``nn.ModuleList`` it becomes the next child, and later ones move up by one; elsewhere the
    block gives way to an ``nn.Sequential`` of both.

    Args:
        model: The model; it is not changed.
        path: A block that gives back the shape that it takes (``stages.repeatable_blocks``).
        inputs: Positional and keyword arguments of the model's forward.
        how: ``fresh``: its layers' own initialisation (AutoGrow, arXiv 1906.02909, found it the better one).
            ``identity``: besides, its last norm or layer is zeroed, so that a residual block hands on what it is given
            (Net2Net, arXiv 1511.05641).
        seed: Of the initialisation.

    Raises:
        InputError: there is no such block, or ``how`` is neither.
        CheckError: the model does not run the new block, or, for ``identity``, its outputs change: the block is no
            residual one.
    """
    if how not in (FRESH, IDENTITY):
        raise InputError(f"how must be {FRESH!r} or {IDENTITY!r}, not {how!r}")
    blocks = repeatable_blocks(model, inputs)
    if path not in blocks:
        raise InputError(f"{path!r} is no block that can be repeated; these are {', '.join(blocks) or 'none'}")
    deeper = copy_model(model)
    block = deeper.get_submodule(path)
    new = copy_model(block)
    with fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        initialise_(new, first_moments(block))
    _put_behind_(deeper, path, new)
    if not _runs(deeper, new, inputs):
        raise CheckError(
            f"{type(model).__name__} does not run a block behind {path!r}: its forward names the blocks that it calls"
        )
    if how == IDENTITY:
        _make_identity_(model, deeper, new, path, inputs)
    return deeper


def _put_behind_(model: nn.Module, path: str, new: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    parent = model.get_submodule(above)
    if isinstance(parent, nn.ModuleList) or type(parent) is nn.Sequential:
        names = list(parent._modules)
        if names == [str(number) for number in range(len(names))]:
            parent.insert(names.index(name) + 1, new)
            return
    parent._modules[name] = nn.Sequential(parent._modules[name] or nn.Identity(), new)


def _runs(model: nn.Module, block: nn.Module, inputs: Inputs) -> bool:
    calls: list[int] = []
    handle = block.register_forward_hook(lambda *_: calls.append(1))
    try:
        _outputs(model, inputs)
    except Exception:  # the user's code may fail in any way on a net that it was not written for
        return False
    finally:
        handle.remove()
    return len(calls) == 1


def _make_identity_(model: nn.Module, deeper: nn.Module, new: nn.Module, path: str, inputs: Inputs) -> None:
    """Zeroes the last layer of the new block that makes it hand on what it is given."""
    expected = _outputs(model, inputs)
    for layer in reversed(list(_layers(new))):
        before = {name: parameter.clone() for name, parameter in layer.named_parameters(recurse=False)}
        with torch.no_grad():
            for parameter in layer.parameters(recurse=False):
                parameter.zero_()
        if _close(_outputs(deeper, inputs), expected):
            return
        with torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(before[name])
    raise CheckError(
        f"a block behind {path!r} cannot be made an identity: zeroing none of its layers leaves the outputs of "
        f"{type(model).__name__} as they are, so it is no residual block; use how='fresh'"
    )


def _layers(block: nn.Module) -> Iterator[nn.Module]:
    return (module for module in block.modules() if next(module.parameters(recurse=False), None) is not None)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    copied = copy_model(model)
    copied.eval()
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    with neutral():
        torch.manual_seed(0)
        return output_tensors(copied(*args, **kwargs))


def _close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and _distance(a, b) <= _TOLERANCE for a, b in zip(ours, theirs, strict=True)
    )


def _distance(a: Tensor, b: Tensor) -> float:
    scale: Any = b.double().abs().max().clamp(min=1e-30) if b.numel() else 1.0
    return float((a.double() - b.double()).abs().max() / scale) if b.numel() else 0.0
