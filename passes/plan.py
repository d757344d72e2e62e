"""Plan: which groups grow, and how far.

In: the model and its ``Analysis``. Out: a frozen ``Plan``: the groups with the widths they may take, numbered, and the
reason for everything that stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from netaug_fx.errors import InputError, PlanError
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Product, Reason, Type, Var
from netaug_fx.passes.graph import INNER, KINDS, STREAM, Group, Pin, find_groups, find_pins
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.layout import Widths

Factors = float | Sequence[float]
Ratio = Factors | Mapping[str, Factors] | Callable[[Group], Factors]
"""A number, a list of factors, either of these by kind, or a function of the group that gives either."""


_LARGEST_FACTOR = 1000.0


@dataclass(frozen=True)
class Plan:
    """The groups that grow, by number, and everything that does not.

    Attributes:
        groups: Growing groups with their ``choices``; a group's number is its index here.
        numbers: The number of each growing variable.
        pins: Dimensions that stay as they are, with reasons.
        stays: Free variables that this plan leaves as they are.
    """

    groups: tuple[Group, ...]
    numbers: Mapping[Var, int]
    pins: tuple[Pin, ...]
    stays: Mapping[Var, Reason]

    @property
    def widest(self) -> Widths:
        """The largest choice of every group."""
        return tuple(group.choices[-1] for group in self.groups)

    @property
    def base(self) -> Widths:
        """The original's width of every group."""
        return tuple(group.width for group in self.groups)

    def grows(self, t: Type) -> bool:
        """Whether a type contains a variable that grows."""
        return any(var in self.numbers for var in channels.variables(t))


def plan(
    model: nn.Module,
    analysis: Analysis,
    ratio: Ratio = 3.0,
    *,
    pin: Sequence[str] = (),
    divisor: int = 1,
    compound: bool = False,
    refused: Mapping[Var, Reason] | None = None,
    allow_nothing: bool = False,
) -> Plan:
    """Decides the widths that each group may take.

    Args:
        model: The model that was analysed.
        analysis: What ``infer`` found.
        ratio: Largest factor r, which gives the factors 1, (1 + r) / 2 and r; or a list of factors; or either by kind
            (``{"stream": ..., "inner": ...}``, kinds left out stay); or a function from a group to either.
        pin: Globs of module paths; every width in a matching module stays.
        divisor: Widths above the original's are rounded to a multiple of it.
        compound: An inner group's factors multiply with the present one of the stream that feeds its writer.
        refused: Variables that must stay (what ``check`` found to break), with reasons.
        allow_nothing: Return a plan without groups where nothing can grow (to look at the reasons).

    Raises:
        InputError: a ratio below 1 or not finite, an unknown kind, a glob that matches nothing, a divisor below 1.
        PlanError: nothing is left that could grow, and ``allow_nothing`` is not given.
    """
    if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 1:
        raise InputError(f"divisor must be an integer of at least 1, not {divisor!r}")
    found = find_groups(model, analysis)
    stays: dict[Var, Reason] = dict(refused or {})
    stays.update(_pinned_by_user(model, found, pin))
    stays.update(_one_per_product(analysis, [var for var in found if var not in stays], found))
    factors_of = _ratio_function(ratio)
    growing: dict[Var, Group] = {}
    for var, group in found.items():
        if var in stays:
            continue
        grown = _with_choices(replace(group, divisor=divisor), factors_of(group))
        if len(grown.choices) == 1:
            stays[var] = Reason(f"the ratio leaves the {group.kind} group {group.name!r} as it is")
        else:
            growing[var] = grown
    for dims in analysis.tensors.values():
        for var in (var for dim in dims for var in channels.variables(dim)):
            if var not in found:
                stays.setdefault(var, Reason("no weight sums over it, so extra channels would have nowhere to go"))
    if compound:
        growing = _compounded(analysis, growing, factors_of)
    if not growing and not allow_nothing:
        raise PlanError(_nothing_grows(analysis, stays))
    return Plan(
        groups=tuple(growing.values()),
        numbers={var: number for number, var in enumerate(growing)},
        pins=find_pins(analysis, stays),
        stays=stays,
    )


def _nothing_grows(analysis: Analysis, stays: Mapping[Var, Reason]) -> str:
    pins = find_pins(analysis, stays)
    reasons = dict.fromkeys(f"{pin.tensor} dim {pin.dim}: {pin.reason}" for pin in pins if "kernel" not in pin.reason)
    shown = "; ".join(list(reasons)[:5]) or "it has no weights"
    opaque = [f"the forward of module {path!r} cannot be traced: {why}" for path, why in analysis.opaque.items()]
    shown = "; ".join([shown, *opaque[:1]])
    return f"nothing in this model can be widened ({shown}); loosen ratio or pin, or see netaug_fx.inspect(model)"


# -- choices ---------------------------------------------------------------------------------------


def _ratio_function(ratio: Ratio) -> Callable[[Group], Sequence[float]]:
    if isinstance(ratio, Mapping):
        unknown = [kind for kind in ratio if kind not in KINDS]
        if unknown:
            raise InputError(f"ratio has the unknown kind {unknown[0]!r}; the kinds are {' and '.join(KINDS)}")
        by_kind = {kind: _factors(factors, f"ratio[{kind!r}]") for kind, factors in ratio.items()}
        return lambda group: by_kind.get(group.kind, (1.0,))
    if callable(ratio):
        return lambda group: _factors(ratio(group), f"ratio({group.name!r})")
    factors = _factors(ratio, "ratio")
    return lambda group: factors


def _factors(value: Factors, name: str) -> tuple[float, ...]:
    given = (value,) if isinstance(value, (int, float)) else value
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or not given:
        raise InputError(f"{name} must be a number or a list of numbers, not {value!r}")
    for factor in given:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor) or factor < 1:
            raise InputError(f"{name} must be finite and at least 1, not {factor!r}")
        if factor > _LARGEST_FACTOR:
            raise InputError(
                f"{name} must be at most {_LARGEST_FACTOR:g}, as weights grow with its square, not {factor!r}"
            )
    if isinstance(value, (int, float)):
        return (1.0, (1 + value) / 2, float(value))
    return (1.0, *map(float, given))


def _with_choices(group: Group, factors: Iterable[float]) -> Group:
    """The group with the widths for the factors; the original's own width is always among them."""
    return replace(group, choices=tuple(sorted({group.width, *map(group.widened, factors)})))


def _compounded(
    analysis: Analysis, growing: Mapping[Var, Group], factors_of: Callable[[Group], Sequence[float]]
) -> dict[Var, Group]:
    """Inner groups bound to the stream that feeds their block, where there is one and one only."""
    sources = sources_of(analysis)
    compounded = dict(growing)
    for var, group in growing.items():
        if group.kind != INNER:
            continue
        streams = {growing[s].name: growing[s] for s in _streams_above(var, sources, growing)}
        if len(streams) == 1:
            (stream,) = streams.values()
            own = tuple(dict.fromkeys(factors_of(group)))
            present = [width / stream.width for width in stream.choices]
            bound = replace(group, feeder=stream.name, factors=own)
            compounded[var] = _with_choices(bound, [factor * other for factor in own for other in present])
    return compounded


def sources_of(analysis: Analysis) -> dict[Var, set[Var]]:
    """For each variable, those that the weights which write it sum over."""
    found: dict[Var, set[Var]] = {}
    for tensor, dims in analysis.tensors.items():
        owner = analysis.owners[tensor]
        read = {v for i, dim in enumerate(dims) if (owner, i) in analysis.readers for v in channels.variables(dim)}
        for index, dim in enumerate(dims):
            if (owner, index) in analysis.writers:
                for var in channels.variables(dim):
                    found.setdefault(var, set()).update(read - {var})
    return found


def _streams_above(var: Var, sources: Mapping[Var, set[Var]], growing: Mapping[Var, Group]) -> set[Var]:
    """The growing streams that feed a variable, directly or through inner groups."""
    streams: set[Var] = set()
    seen, stack = {var}, [var]
    while stack:
        for source in sources.get(stack.pop(), ()):
            if source in seen or source not in growing:
                continue
            seen.add(source)
            if growing[source].kind == STREAM:
                streams.add(source)
            else:
                stack.append(source)
    return streams


# -- what stays ------------------------------------------------------------------------------------


def _pinned_by_user(model: nn.Module, found: Mapping[Var, Group], pin: Sequence[str]) -> dict[Var, Reason]:
    check_pins(model, pin)
    stays: dict[Var, Reason] = {}
    for pattern in pin:
        for var, group in found.items():
            if any(fnmatchcase(path, pattern) for layer in group.layers for path in with_parents(layer)):
                stays[var] = Reason(f"pinned by pin={pattern!r}")
    return stays


def check_pins(model: nn.Module, pin: Any) -> None:
    """Accepts globs of module paths that each match a module.

    Raises:
        InputError: it is something else, or one matches nothing.
    """
    if isinstance(pin, str):
        raise InputError(f"pin must be a list of module-path globs, such as pin=[{pin!r}]")
    if not isinstance(pin, Collection) or not all(isinstance(pattern, str) for pattern in pin):
        raise InputError(f"pin must be a list of module-path globs (strings), not {pin!r}")
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in pin:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise InputError(f"pin={pattern!r} matches no module; paths look like {', '.join(map(repr, paths[:5]))}")


def with_parents(path: str) -> list[str]:
    """A module's path and those of all modules that it is in."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _one_per_product(analysis: Analysis, growing: Sequence[Var], found: Mapping[Var, Group]) -> dict[Var, Reason]:
    """Of several factors of one dimension, one grows: attention heads if there are any, else the largest."""
    heads = {var for t in analysis.heads for var in channels.variables(t)}
    free = set(growing)
    stays: dict[Var, Reason] = {}
    for product in _products(analysis):
        factors = [[var for var in channels.variables(f) if var in free and var not in stays] for f in product.factors]
        candidates = [(vars_, factor.size) for vars_, factor in zip(factors, product.factors, strict=True) if vars_]
        if len(candidates) < 2:
            continue
        keep, _ = max(candidates, key=lambda item: (any(var in heads for var in item[0]), item[1]))
        for vars_, _ in candidates:
            for var in vars_:
                if var not in keep:
                    stays[var] = Reason(
                        f"group {found[keep[0]].name!r} grows in its place: both are factors of one dimension"
                    )
    return stays


def _products(analysis: Analysis) -> list[Product]:
    products: list[Product] = []
    stack = [channels.resolve(dim) for dims in analysis.tensors.values() for dim in dims]
    while stack:
        t = stack.pop()
        if isinstance(t, Product):
            products.append(t)
            stack.extend(t.factors)
        elif isinstance(t, channels.Concat):
            stack.extend(t.parts)
    return products
