"""The compiler's passes in their order: ``augment`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from netaug_fx.elastic import is_elastic
from netaug_fx.errors import CheckError, InputError, TraceError
from netaug_fx.example_inputs import checked_model, materialise, resolve_inputs
from netaug_fx.inspection import Inspection
from netaug_fx.passes.channels import Reason, Var
from netaug_fx.passes.check import check
from netaug_fx.passes.check_real import check_state, check_target, wrong_rewrite
from netaug_fx.passes.graph import dependency_graph, find_groups
from netaug_fx.passes.infer import Analysis, Inputs, infer, refuse_unsuitable
from netaug_fx.passes.observe import Observed, observe
from netaug_fx.passes.plan import Plan, Ratio, plan
from netaug_fx.passes.running import seldom_collected
from netaug_fx.passes.stages import find_stages
from netaug_fx.passes.widen import widen
from netaug_fx.supernet import Supernet, install

_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Compiled:
    """What the passes made of a model, before it is handed over.

    Attributes:
        analysis: What ``infer`` found.
        plan: Which groups grow.
        supernet: The widened copy; ``hand_over`` makes it a ``Supernet``.
        inputs: The inputs that the model was analysed on.
        observed: What the model gave on them.
    """

    analysis: Analysis
    plan: Plan
    supernet: nn.Module
    inputs: Inputs
    observed: Observed


def augment(
    model: nn.Module,
    ratio: Ratio = 3.0,
    *,
    example_inputs: Any = None,
    pin: Sequence[str] = (),
    divisor: int = 1,
    compound: bool = False,
    seed: int = 0,
) -> Supernet:
    """Puts ``model`` inside a wider net that shares its weights.

    Args:
        model: Any module; it is not changed (but lazy modules in it get their parameters, by one run on the inputs).
        ratio: Largest width factor r, which gives each group the factors 1, (1 + r) / 2 and r ([NetAug] augmentation
            factor r, diversity factor s = 2); or a list of factors; or either by kind, such as
            ``{"stream": [1, 1.8, 2.6], "inner": [1, 1.6, 2.2, 2.8]}``; or a function from a ``Group`` to either.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments; found by itself where the model
            declares one or its first layer tells.
        pin: Globs of module paths (``["head.*"]``) whose tensors keep their widths.
        divisor: Widths above the original's are rounded to a multiple of it.
        compound: The factors of channels inside a block multiply with the present factor of the stream that feeds the
            block, as in the paper; else each group's factors are its own.
        seed: Seeds the extra weights and the supernet's own generator of widths.

    Returns:
        The supernet: an instance of the model's class with the same state_dict keys plus extras. Called as it is, it is
        the model, bit for bit; within ``supernet.augmented()`` it is one wider net.

    Raises:
        InputError: an argument cannot be used.
        TraceError: the model does not run on the example inputs.
        PlanError: nothing in the model can be widened.
        CheckError: the result does not reproduce the model (never handed over).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import netaug_fx
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> supernet = netaug_fx.augment(model, ratio=3)
        >>> [(group.name, group.choices) for group in supernet.groups]
        [('0', (8, 16, 24))]
        >>> x = torch.randn(1, 3, 16, 16)
        >>> bool((supernet(x) == model(x)).all())
        True
        >>> with supernet.augmented() as widths:
        ...     supernet(x).shape
        torch.Size([1, 4, 12, 12])
    """
    compiled = compile_model(
        model, ratio, example_inputs=example_inputs, pin=pin, divisor=divisor, compound=compound, seed=seed
    )
    return hand_over(compiled, seed)


def inspect(
    model: nn.Module,
    ratio: Ratio = 3.0,
    *,
    example_inputs: Any = None,
    pin: Sequence[str] = (),
    divisor: int = 1,
    compound: bool = False,
) -> Inspection:
    """What ``augment`` would do to ``model``: its groups, what is pinned and why, and the dependency graph.

    Also its stages, which ``enlarge`` decides by.

    Takes the same arguments and raises the same errors, but where nothing can grow it says why instead; the model is
    not changed.

    Example:
        >>> from torch import nn
        >>> import netaug_fx
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> [group.layers for group in netaug_fx.inspect(model).groups]
        [('0', '2')]
    """
    compiled = compile_model(
        model,
        ratio,
        example_inputs=example_inputs,
        pin=pin,
        divisor=divisor,
        compound=compound,
        allow_nothing=True,
    )
    analysis, chosen = compiled.analysis, compiled.plan
    found = {var: group for var, group in find_groups(model, analysis).items() if var in chosen.numbers}
    planned = {var: chosen.groups[chosen.numbers[var]] for var in found}
    stages = find_stages(model, analysis, compiled.inputs)
    return Inspection.of(model, analysis, chosen, dependency_graph(analysis, planned), stages)


@seldom_collected()
def compile_model(
    model: nn.Module,
    ratio: Ratio = 3.0,
    *,
    example_inputs: Any = None,
    pin: Sequence[str] = (),
    divisor: int = 1,
    compound: bool = False,
    seed: int = 0,
    allow_nothing: bool = False,
) -> Compiled:
    """trace, infer, plan, widen, check; what breaks is refused and the rest planned anew.

    Takes the arguments of ``augment`` and raises its errors; with ``allow_nothing`` a model in which nothing can grow
    is compiled too.
    """
    prepare(model, example_inputs, seed)
    inputs = resolve_inputs(model, example_inputs)
    observed = _observed(model, inputs)
    analysis = infer(model, inputs, observed)
    refused: dict[Var, Reason] = {}
    for _ in range(_MOST_ROUNDS):
        chosen = plan(
            model,
            analysis,
            ratio,
            pin=pin,
            divisor=divisor,
            compound=compound,
            refused=refused,
            allow_nothing=allow_nothing,
        )
        supernet = widen(model, analysis, chosen, seed=seed, mixin=Supernet)
        broken = check(supernet, analysis, chosen, inputs, seed=seed)
        refused |= broken
        if broken:
            continue
        path = wrong_rewrite(supernet, chosen.base, observed, inputs)
        if path is None:
            check_state(supernet, chosen.widest, inputs)
            return Compiled(analysis, chosen, supernet, inputs, observed)
        analysis = analysis.without_forward(path, "its rewritten forward gives other outputs than its own")
    raise CheckError(
        f"{type(model).__name__} still fails its check after {_MOST_ROUNDS} rounds of pinning; please report it"
    )


def prepare(model: nn.Module, example_inputs: Any, seed: int) -> None:
    """Lets pass only what can be made a supernet; lazy modules get their parameters.

    Raises:
        InputError: it is no such model, or the seed is none.
    """
    checked_model(model)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise InputError(f"seed must be an integer of 64 bits, not {seed!r}")
    elastic = next((path for path, module in model.named_modules() if is_elastic(module)), None)
    if elastic is not None:
        where = f"its module {elastic!r}" if elastic else "it"
        raise InputError(
            f"the model is augmented already ({where} is elastic); augment the plain model, or extract it first"
        )
    materialise(model, example_inputs)
    refuse_unsuitable(model)


def _observed(model: nn.Module, inputs: Inputs) -> Observed:
    try:
        return observe(model, inputs)
    except TraceError:
        infer(model, inputs)  # fails too as a rule, and knows the module
        raise


@seldom_collected()
def hand_over(compiled: Compiled, seed: int = 0) -> Supernet:
    """Makes the widened copy a ``Supernet``, and holds its target against the model, for real.

    Raises:
        CheckError: the target differs from the model in a single bit.
    """
    supernet = compiled.supernet
    assert isinstance(supernet, Supernet)
    install(supernet, compiled.plan.groups, compiled.plan.pins, seed)
    check_target(supernet, compiled.observed, compiled.inputs)
    return supernet
