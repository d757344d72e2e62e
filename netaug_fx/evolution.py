"""Knowledge Evolution: a model split into a fit hypothesis, which is kept, and a reset one, which is drawn anew.

Train the dense net, ``reset_``, train again: each such generation hands the fit hypothesis on. At the end it can stand
by itself: ``extract`` cuts it out. ([KE]: Taha, Shrivastava and Davis, Knowledge Evolution in Neural Networks, CVPR
2021, arXiv 2103.05152.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.api import Compiled, compile_model, prepare
from netaug_fx.elastic import STATE, Active, ModuleState, elastic_class
from netaug_fx.errors import CheckError, InputError, NetAugError, PlanError
from netaug_fx.example_inputs import checked_model
from netaug_fx.passes.channels import Var
from netaug_fx.passes.check_real import check_target
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.drawing import first_moments
from netaug_fx.passes.extract import extract
from netaug_fx.passes.graph import Group
from netaug_fx.passes.observe import mode_name, observe, outputs_of
from netaug_fx.passes.plan import Plan, check_pins, with_parents
from netaug_fx.passes.resize import resize
from netaug_fx.passes.widen import widen
from netaug_fx.split import KELS, WELS, Split, originals, put_reset_part_
from netaug_fx.supernet import Supernet, install


def evolve(
    model: nn.Module,
    keep: float = 0.5,
    method: str = KELS,
    *,
    example_inputs: Any = None,
    pin: Sequence[str] = (),
    seed: int = 0,
) -> Supernet:
    """Splits a model into the fit hypothesis, which generations hand on, and the reset one ([KE], section 3).

    Args:
        model: Any module; it is not changed.
        keep: The part that is fit, above 0 and at most 1.
        method: ``kels``: the first ``ceil(keep * C)`` channels of every group, inputs and outputs whole, each part of a
            concatenation by itself, groups and heads kept whole: a slim net that can be cut out. ``wels``: each weight
            with probability ``keep``; no slim net exists, and any module will do.
        example_inputs: As for ``augment``; ``wels`` needs them for lazy modules alone.
        pin: Globs of module paths whose tensors are fit as a whole.
        seed: Seeds the masks of ``wels`` and what ``reset_`` draws.

    Returns:
        A supernet, an instance of the model's class. Within ``supernet.dense()`` it is the model; called as it is, the
        slim net (of ``wels``: the model, too). Both share the fit weights and the norms' running statistics.

    Raises:
        InputError: an argument cannot be used.
        TraceError: the model does not run on the example inputs.
        PlanError: no width of the model can be cut.
        CheckError: the supernet does not reproduce the model (never handed over).

    Example:
        >>> import torch, netaug_fx
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> supernet = netaug_fx.evolve(model, keep=0.5)
        >>> x = torch.randn(1, 3, 16, 16)
        >>> with supernet.dense():
        ...     bool((supernet(x) == model(x)).all())
        True
        >>> netaug_fx.reset_(supernet)
        >>> netaug_fx.extract(supernet)
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
          (2): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    checked_model(model)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise InputError(f"keep must be above 0 and at most 1: the part that is fit, not {keep!r}")
    if method not in _METHODS:
        raise InputError(f"method must be {' or '.join(map(repr, _METHODS))}, not {method!r}")
    return _METHODS[method](model, float(keep), example_inputs, pin, seed)


# -- by channels -----------------------------------------------------------------------------------


def _kels(model: nn.Module, keep: float, example_inputs: Any, pin: Sequence[str], seed: int) -> Supernet:
    found = compile_model(model, a_little_wider, example_inputs=example_inputs, pin=pin, seed=seed, allow_nothing=True)
    _refuse_new_buffers(model, found.observed.buffers)
    sizes = {var: _kept(var.size, keep) for var in found.plan.numbers if _kept(var.size, keep) < var.size}
    if not sizes and keep < 1:
        raise PlanError(_nothing_is_cut(model, keep, found.plan))
    slim = resize(model, found.analysis, sizes)
    plan = _plan(found.plan, sizes)
    supernet = widen(slim, found.analysis, plan, seed=seed, mixin=Supernet, shared_buffers=True)
    assert isinstance(supernet, Supernet)
    mixing = ", ".join(dict.fromkeys(f"{m.op} in {m.module or 'the model'}" for m in found.analysis.mixing))
    split = Split(KELS, keep, first_moments(model), originals(model, slim), mixing=mixing)
    install(supernet, plan.groups, plan.pins, seed, split)
    put_reset_part_(supernet, split, seed, model)
    _check(supernet, slim, found)
    return supernet


def _refuse_new_buffers(model: nn.Module, after: Mapping[bool, Mapping[str, Tensor]]) -> None:
    known = dict(model.named_buffers(remove_duplicate=False))
    for name in (name for buffers in after.values() for name in buffers if name not in known):
        raise InputError(
            f"a forward of {type(model).__name__} registers the buffer {name!r} while it runs: run the model once "
            "before evolve, so that the buffer exists and is divided, too"
        )


def _nothing_is_cut(model: nn.Module, keep: float, found: Plan) -> str:
    widths = [var.size for var in found.numbers]
    if widths and max(widths) > 1:
        most = max(widths)
        why = f"ceil({keep:g} * {most}) are all {most} channels of its widest group: keep at most 1 - 1/{most}"
    else:
        reasons = dict.fromkeys(f"{pin.tensor} dim {pin.dim}: {pin.reason}" for pin in found.pins)
        why = "; ".join(list(reasons)[:5]) or "every width is one channel"
    return f"no width of {type(model).__name__} can be cut to keep={keep:g} ({why}); method='wels' splits any model"


def a_little_wider(group: Group) -> float:
    """The types are checked on nets that are wider: enough for no two widths to be mistaken for one another."""
    return max(1.5, (group.width + 3) / group.width)


def _kept(width: int, keep: float) -> int:
    return max(1, math.ceil(round(keep * width, 9)))  # 0.55 * 20 is 11.000000000000002


def _plan(found: Plan, sizes: dict[Var, int]) -> Plan:
    """The plan of a supernet whose target is the slim net, and whose widest net is the model."""
    groups = [
        replace(found.groups[found.numbers[var]], width=size, choices=(size, var.size)) for var, size in sizes.items()
    ]
    numbers = {var: number for number, var in enumerate(sizes)}
    return replace(found, groups=tuple(groups), numbers=numbers)


def _check(supernet: Supernet, slim: nn.Module, found: Compiled) -> None:
    """The target is the slim net, and the dense pass the model, bit for bit.

    Raises:
        CheckError: one of them is not.
    """
    check_target(supernet, observe(slim, found.inputs), found.inputs)
    copied = copy_model(supernet)
    for training in (False, True):
        outputs = _outputs_of_dense(copied, found, training)
        expected = found.observed.outputs[training]
        mode = f"in {mode_name(training)} mode"
        own = dict(extract(copied, dense=True).named_buffers(remove_duplicate=False))
        for name, value in found.observed.buffers[training].items():
            if name not in own or not _same(own[name], value):
                raise CheckError(
                    f"buffer {name!r} of the dense net differs from {type(supernet).__name__}'s {mode}; {_WRITING}"
                )
        if len(outputs) != len(expected) or not all(map(_same, outputs, expected)):
            raise CheckError(f"the dense net differs from {type(supernet).__name__} {mode}; please report it")


def _outputs_of_dense(supernet: nn.Module, found: Compiled, training: bool) -> list[Tensor]:
    try:
        with Supernet.dense(supernet):  # type: ignore[arg-type]
            return outputs_of(supernet, found.inputs, training)
    except NetAugError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise CheckError(
            f"the dense net of {type(supernet).__name__} does not run in {mode_name(training)} mode: "
            f"{type(error).__name__}: {error}; {_WRITING}"
        ) from error


_WRITING = (
    "a forward may write into buffers in place and by assigning to the attribute, but not through _buffers or .data "
    "(method='wels' splits any model; if none of yours does, please report it)"
)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


# -- by single weights -----------------------------------------------------------------------------


def _wels(model: nn.Module, keep: float, example_inputs: Any, pin: Sequence[str], seed: int) -> Supernet:
    prepare(model, example_inputs, seed)
    check_pins(model, pin)
    supernet = copy_model(model)
    supernet.__dict__[STATE] = ModuleState("", Active(()), {}, {}, own_forward=vars(supernet).get("forward"))
    supernet.__class__ = elastic_class(type(supernet), frozenset(), frozenset(), False, Supernet)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    everywhere = model.named_parameters(remove_duplicate=False)  # tied ones by any of their paths
    whole = frozenset(names[id(parameter)] for name, parameter in everywhere if _pinned(name, pin))
    install(supernet, (), (), seed, Split(WELS, keep, first_moments(model), whole=whole))
    assert isinstance(supernet, Supernet)
    return supernet


def _pinned(name: str, pin: Sequence[str]) -> bool:
    path = name.rpartition(".")[0]
    return any(fnmatchcase(prefix, pattern) for pattern in pin for prefix in with_parents(path))


_METHODS: dict[str, Callable[[nn.Module, float, Any, Sequence[str], int], Supernet]] = {KELS: _kels, WELS: _wels}
