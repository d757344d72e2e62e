"""Check for real: the supernet's target, and its rewritten forwards at the original's widths, against the model.

In: the supernet and what was ``observe``d of the model. Out: nothing if the target gives the same numbers, and the path
of the first module whose rewritten forward does not give the original's outputs, if one does not. ``check`` compares
shapes and places on fake tensors; values are compared here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from netaug_fx.assembly import STATISTIC
from netaug_fx.attributes import tensors_held
from netaug_fx.elastic import STATE, Active, ModuleState
from netaug_fx.errors import BranchError, CheckError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.layout import Widths
from netaug_fx.passes.observe import Inputs, Observed, mode_name, outputs_of
from netaug_fx.passes.running import output_tensors

_TOLERANCE = 1e-3  # of the largest value: other kernels may be chosen for assembled tensors


def check_target(supernet: nn.Module, observed: Observed, inputs: Inputs) -> None:
    """Runs the target on the inputs that the model was observed on, in both training modes.

    Raises:
        CheckError: an output or a buffer is not the same number everywhere.
    """
    copied = copy_model(supernet)
    for training in (False, True):
        got, expected = outputs_of(copied, inputs, training), observed.outputs[training]
        differs = f"in {mode_name(training)} mode differ from those of {type(supernet).__name__}"
        if len(got) != len(expected) or not _equal(got, expected):
            raise CheckError(f"the target's outputs {differs}")
        own = dict(copied.named_buffers(remove_duplicate=False))
        buffers = observed.buffers[training]
        if not _equal((own[name] for name in buffers), buffers.values()):
            raise CheckError(f"the target's buffers after a pass {differs}")


def wrong_rewrite(supernet: nn.Module, base: Widths, observed: Observed, inputs: Inputs) -> str | None:
    """The path of the first rewritten module whose outputs at the original's widths are not the original's.

    A graph may leave out what it cannot see; at the original's widths every augmented pass must give the target.

    Raises:
        CheckError: the outputs differ, but no single module's do.
    """
    if not any(_is_rewritten(module) for module in supernet.modules()):
        return None
    for training in (False, True):
        copied = _ready(supernet, inputs, training)
        _put_at(copied, base, training)
        try:
            found = outputs_of(copied, inputs, training)
        except BranchError as refused:  # the way depends on what an earlier pass left behind
            return refused.path
        if _close(found, observed.outputs[training]):
            continue
        ours, theirs = _ready(supernet, inputs, training), _ready(supernet, inputs, training)
        _put_at(ours, base, training)
        ours_gave, expected = (_outputs_of_rewritten(net, inputs, training) for net in (ours, theirs))
        for path, got in ours_gave:
            if not expected or expected[0][0] != path or not _close(got, expected.pop(0)[1]):
                return path
        raise CheckError(
            f"in {mode_name(training)} mode an augmented pass at the original's widths differs from "
            f"{type(supernet).__name__}, though each rewritten forward agrees with its original; please report it"
        )
    return None


def check_state(supernet: nn.Module, widest: Widths, inputs: Inputs) -> None:
    """Holds a wider pass to what it may touch: tensors in plain attributes are the target's alone.

    Raises:
        CheckError: a forward writes into such a tensor.
    """
    if not any(True for _ in tensors_held(supernet)):
        return
    for training in (False, True):
        copied = _ready(supernet, inputs, training)
        outputs_of(copied, inputs, training)  # what is kept from call to call is there from now on
        before = [(path, tensor, tensor._version) for path, tensor in tensors_held(copied)]
        _put_at(copied, widest, True)
        outputs_of(copied, inputs, training)
        for path, tensor, version in before:
            if tensor._version != version:
                raise CheckError(
                    f"a forward writes into the tensor {path!r} of {type(supernet).__name__}, which is a plain "
                    "attribute: passes of wider nets would change it for the target. Register it as a buffer "
                    "(register_buffer) and write to it by that name, or assign a new tensor in place of writing into it"
                )


def _ready(supernet: nn.Module, inputs: Inputs, training: bool) -> nn.Module:
    """A copy in the state that the model was in when it was observed: evaluation came before training."""
    copied = copy_model(supernet)
    if training:
        outputs_of(copied, inputs, False)
    return copied


def _put_at(supernet: nn.Module, base: Widths, training: bool) -> None:
    """Puts a supernet at the original's widths, as an augmented pass; evaluation uses the target's statistics."""
    root: ModuleState = supernet.__dict__[STATE]
    active: Active = root.active
    active.widths, active.scratch = base, {}
    active.statistics = None if training else _statistics(supernet)


def _statistics(supernet: nn.Module) -> dict[str, Tensor]:
    found = {}
    for module in supernet.modules():
        state = module.__dict__.get(STATE)
        for tensor in state.tensors.values() if isinstance(state, ModuleState) else ():
            buffer = module._buffers.get(tensor.name)
            if tensor.kind == STATISTIC and buffer is not None:
                found[tensor.full_name] = buffer.clone()
    return found


def _is_rewritten(module: nn.Module) -> bool:
    state = module.__dict__.get(STATE)
    return isinstance(state, ModuleState) and bool(state.forwards)


def _outputs_of_rewritten(net: nn.Module, inputs: Inputs, training: bool) -> list[tuple[str, list[Tensor]]]:
    """What each call of a rewritten module gave, in the order in which they came to an end."""
    found: list[tuple[str, list[Tensor]]] = []
    handles = [
        module.register_forward_hook(
            lambda _module, _args, output, path=path: found.append(
                (path, [tensor.clone() for tensor in output_tensors(output)])
            )
        )
        for path, module in net.named_modules()
        if _is_rewritten(module)
    ]
    try:
        outputs_of(net, inputs, training)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _equal(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    return all(
        a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(ours, theirs, strict=True)
    )


def _close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(_near(a, b) for a, b in zip(ours, theirs, strict=True))


def _near(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (b.is_floating_point() or b.is_complex()):
        return torch.equal(a, b)
    finite = b[torch.isfinite(b)].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)
