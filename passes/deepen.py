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
from netaug_fx.passes.compare_outputs import Array, distance
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.drawing import first_moments, initialise_
from netaug_fx.passes.infer import Inputs
from netaug_fx.passes.probe import array, drawn, outputs
from netaug_fx.passes.running import output_tensors
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
        inputs: Positional and keyword arguments of the model's forward; noise takes the place of zeros.
        how: ``fresh``: its layers' own initialisation (AutoGrow, arXiv 1906.02909, found it the better one).
            ``identity``: besides, its last norm or layer is zeroed, so that a residual block hands on what it is given
            (Net2Net, arXiv 1511.05641).
        seed: Of the initialisation.

    Raises:
        InputError: there is no such block, or ``how`` is neither.
        CheckError: the model does not run the new block, or, for ``identity``, the new block does not hand on what it
            is given: it is no residual one.
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


def moved_path(model: nn.Module, block: str, path: str) -> str:
    """Where a module of a model is found in what ``insert_block`` makes of it.

    Args:
        model: The model as it was.
        block: The block behind which another is put.
        path: The module's path in the model.
    """
    above, _, name = block.rpartition(".")
    if _numbered(model.get_submodule(above)):
        start = f"{above}." if above else ""
        child, _, below = path.removeprefix(start).partition(".")
        if path.startswith(start) and child.isdigit() and int(child) > int(name):
            return ".".join([f"{start}{int(child) + 1}", *([below] if below else [])])
        return path
    return f"{block}.0{path[len(block) :]}" if f"{path}.".startswith(f"{block}.") else path


def _numbered(parent: nn.Module) -> bool:
    """Whether it holds its children in a row, so that another one can stand between two."""
    in_a_row = list(parent._modules) == [str(number) for number in range(len(parent._modules))]
    return in_a_row and (isinstance(parent, nn.ModuleList) or type(parent) is nn.Sequential)


def _put_behind_(model: nn.Module, path: str, new: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    parent: Any = model.get_submodule(above)
    if _numbered(parent):
        parent.insert(int(name) + 1, new)
    else:
        parent._modules[name] = nn.Sequential(parent._modules[name], new)


def _runs(model: nn.Module, block: nn.Module, inputs: Inputs) -> bool:
    try:
        return len(_seen(model, block, inputs)) == 1
    except Exception:  # the user's code may fail in any way on a net that it was not written for
        return False


def _seen(model: nn.Module, block: nn.Module, inputs: Inputs) -> list[tuple[list[Array], list[Array]]]:
    """What a block of a model is given and what it makes of it, for each time that it is called, on noise."""
    given: list[list[Array]] = []
    made: list[list[Array]] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:  # a block may write into what it is given
        given.append([array(t.clone()) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)])

    def after(_module: nn.Module, args: Any, output: Any) -> None:
        made.append([array(t) for t in output_tensors(output)])

    # ``outputs`` runs a copy, which takes the hooks along.
    handles = (block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after))
    try:
        outputs(model, drawn(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return list(zip(given, made, strict=True))


def _make_identity_(model: nn.Module, deeper: nn.Module, new: nn.Module, path: str, inputs: Inputs) -> None:
    """Zeroes the last layer of the new block that makes it hand on what it is given."""
    for layer in reversed(list(_layers(new))):
        before = {name: parameter.clone() for name, parameter in layer.named_parameters(recurse=False)}
        with torch.no_grad():
            for parameter in layer.parameters(recurse=False):
                parameter.zero_()
        if all(_hands_on(given, made) for given, made in _seen(deeper, new, inputs)):
            return
        with torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(before[name])
    raise CheckError(
        f"a block behind {path!r} of {type(model).__name__} cannot be made an identity: zeroing none of its layers "
        "lets it hand on what it is given, so it is no residual block; use how='fresh'"
    )


def _hands_on(given: list[Array], made: list[Array]) -> bool:
    """Whether a block's output is its input; of zeros alone it could not be told."""
    if len(given) != 1 or len(made) != 1 or given[0].shape != made[0].shape:
        return False
    return bool(given[0].any()) and distance(made[0], given[0]) <= _TOLERANCE


def _layers(block: nn.Module) -> Iterator[nn.Module]:
    return (module for module in block.modules() if next(module.parameters(recurse=False), None) is not None)
