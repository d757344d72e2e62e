"""Channel types: what one dimension of a tensor is made of.

A type is one of

- ``Fixed(n)``: n elements, never more;
- ``Var(n)``: n elements today, any number from n upwards in a wider net; growth is appended;
- ``Concat(parts)``: the parts one after the other;
- ``Product(factors)``: all combinations of the factors' elements, outermost first, as a reshape lays them out.

``unify`` makes two types equal by binding variables, as type inference does for programs; whatever has no common
solution raises ``Mismatch``. This file knows no tensor and no operator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

_ids = itertools.count()

Source = tuple[str, int]
"""A dimension of a parameter or buffer: its name in the model and the dimension's index."""


class Mismatch(Exception):
    """Two types have no common solution."""


@dataclass(frozen=True)
class Reason:
    """Why something cannot grow: a sentence, and the operator and place in the user's code that caused it."""

    text: str
    op: str = ""
    module: str = ""
    location: str = ""


OF_INPUT = "it is a dimension of the model's input"
OF_SPACE = "it is a spatial dimension"
"""Reasons of sizes that change with the input."""


@dataclass(frozen=True)
class Fixed:
    """``size`` elements, never more; ``reason`` says why."""

    size: int
    reason: Reason | None = field(default=None, compare=False)


class Var:
    """A width that may grow. ``bound`` is set once, by ``unify``, ``split`` or ``pin``."""

    __slots__ = ("bound", "id", "size", "sources")

    def __init__(self, size: int, sources: frozenset[Source] = frozenset()) -> None:
        self.id = next(_ids)
        self.size = size
        self.bound: Type | None = None
        self.sources = sources

    def __repr__(self) -> str:
        return f"Var({self.size}, #{self.id})"


@dataclass(frozen=True)
class Concat:
    """The parts one after the other."""

    parts: tuple[Type, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Product:
    """All combinations of the factors' elements, outermost first."""

    factors: tuple[Type, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(factor.size for factor in self.factors)


Type = Fixed | Var | Concat | Product


def fresh(size: int, sources: frozenset[Source] = frozenset()) -> Type:
    """A new variable; a dimension of one element (or none) is ``Fixed``, because it may stand for a broadcast."""
    return Var(size, sources) if size > 1 else Fixed(size)


def resolve(t: Type) -> Type:
    """The normal form of ``t`` under the bindings made so far.

    Nested concatenations and products are flattened, factors of one element and parts of none dropped, neighbouring
    ``Fixed`` merged, and a concatenation as outermost factor is distributed: ``(a ++ b) x c = (a x c) ++ (b x c)``.
    """
    t = _root(t)
    if isinstance(t, (Fixed, Var)):
        return t
    if isinstance(t, Concat):
        return _concat(resolve(part) for part in t.parts)
    return _product([resolve(factor) for factor in t.factors])


def _root(t: Type) -> Type:
    chain = []
    while isinstance(t, Var) and t.bound is not None:
        chain.append(t)
        t = t.bound
    for var in chain[:-1]:
        if isinstance(t, Var):  # shorten chains of variables only: a bound structure keeps its place for reasons
            var.bound = t
    return t


def _concat(parts: Iterable[Type]) -> Type:
    flat: list[Type] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Concat) else (part,):
            if piece.size == 0:
                continue
            last = flat[-1] if flat else None
            if isinstance(piece, Fixed) and isinstance(last, Fixed):
                flat[-1] = Fixed(last.size + piece.size, last.reason or piece.reason)
            else:
                flat.append(piece)
    if not flat:
        return Fixed(0)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def _product(factors: Sequence[Type]) -> Type:
    flat: list[Type] = []
    for factor in factors:
        for piece in factor.factors if isinstance(factor, Product) else (factor,):
            last = flat[-1] if flat else None
            if isinstance(piece, Fixed) and isinstance(last, Fixed):
                flat[-1] = Fixed(last.size * piece.size, last.reason or piece.reason)
            elif not (isinstance(piece, Fixed) and piece.size == 1):
                flat.append(piece)
                if isinstance(last, Fixed) and last.size == 1:
                    flat.pop(-2)
    if any(f.size == 0 for f in flat):
        return Fixed(0)
    if not flat:
        return Fixed(1)
    if len(flat) == 1:
        return flat[0]
    head, *rest = flat
    if isinstance(head, Concat):
        return _concat(_product([part, *rest]) for part in head.parts)
    return Product(tuple(flat))


def variables(t: Type) -> Iterator[Var]:
    """The free variables of ``t``, in order, each as often as it occurs."""
    stack = [resolve(t)]
    while stack:
        t = stack.pop()
        if isinstance(t, Var):
            yield t
        elif isinstance(t, Concat):
            stack.extend(reversed(t.parts))
        elif isinstance(t, Product):
            stack.extend(reversed(t.factors))


def sources(t: Type) -> frozenset[Source]:
    """The parameter dimensions that ``t``, as handed through the operators so far, was made from."""
    if isinstance(t, Var):
        return t.sources
    if isinstance(t, Concat):
        return frozenset[Source]().union(*(sources(part) for part in t.parts))
    if isinstance(t, Product):
        return frozenset[Source]().union(*(sources(factor) for factor in t.factors))
    return frozenset()


def merged(a: Type, b: Type) -> Type:
    """``a``, of which it is known that it was made from the parameter dimensions of ``b`` too."""
    extra = sources(b) - sources(a)
    if not extra or a.size <= 1:
        return a
    alias = Var(a.size, sources(a) | extra)
    alias.bound = a
    return alias


def pin(t: Type, reason: Reason) -> None:
    """Binds every free variable of ``t`` to its present size."""
    for var in list(variables(t)):
        if var.bound is None:
            var.bound = Fixed(var.size, reason)


def pin_reason(t: Type) -> Reason | None:
    """The reason of the first ``Fixed`` with one inside ``t``, if any."""
    t = resolve(t)
    if isinstance(t, Fixed):
        return t.reason
    if isinstance(t, Var):
        return None
    for inner in t.parts if isinstance(t, Concat) else t.factors:
        if (reason := pin_reason(inner)) is not None:
            return reason
    return None


def follows_input(t: Type) -> bool:
    """Whether a fixed size that changes with the model's input takes part in ``t``."""
    t = resolve(t)
    if isinstance(t, Fixed):
        return t.size > 1 and t.reason is not None and t.reason.text in (OF_INPUT, OF_SPACE)
    if isinstance(t, Var):
        return False
    return any(follows_input(inner) for inner in (t.parts if isinstance(t, Concat) else t.factors))


def size_at(t: Type, widths: Mapping[Var, int]) -> int:
    """Number of elements of ``t`` when its variables take the given widths (others keep their size)."""
    t = resolve(t)
    if isinstance(t, Fixed):
        return t.size
    if isinstance(t, Var):
        return widths.get(t, t.size)
    if isinstance(t, Concat):
        return sum(size_at(part, widths) for part in t.parts)
    return prod(size_at(factor, widths) for factor in t.factors)


def unify(a: Type, b: Type, reason: Reason | None = None) -> None:
    """Makes ``a`` and ``b`` equal by binding variables.

    ``reason`` is kept with whatever gets pinned on the way. Raises ``Mismatch`` when there is no solution; bindings
    made until then stay, so the caller pins both sides.
    """
    work = [(a, b)]
    while work:
        a, b = (resolve(t) for t in work.pop())
        if a is b or a == b:
            continue
        if a.size != b.size:
            raise Mismatch(f"{a.size} elements against {b.size}")
        if isinstance(b, Var) and not isinstance(a, Var):
            a, b = b, a
        if isinstance(a, Var):
            a.bound = Fixed(b.size, _reason_of(b, reason)) if isinstance(b, Fixed) else b
        elif isinstance(a, Fixed) or isinstance(b, Fixed):
            fixed, other = (a, b) if isinstance(a, Fixed) else (b, a)
            pin(other, _reason_of(fixed, reason))
        elif isinstance(a, Product) and isinstance(b, Product):
            work.extend(_align_products(a, b))
        else:
            whole, other = (a, b) if isinstance(a, Concat) else (b, a)
            assert isinstance(whole, Concat)
            first, rest = split(other, whole.parts[0].size)
            # the rest first onto the stack: parts are then unified in order, front to back
            work.append((Concat(whole.parts[1:]), rest))
            work.append((whole.parts[0], first))


def _reason_of(t: Type, default: Reason | None) -> Reason:
    return pin_reason(t) or default or Reason("it is tied to a dimension of fixed size")


def _align_products(a: Product, b: Product) -> list[tuple[Type, Type]]:
    """Pairs of factors of equal size whose equality makes the products equal."""
    for take_first in (True, False):
        fa, fb = (a.factors[0], b.factors[0]) if take_first else (a.factors[-1], b.factors[-1])
        if fa.size == fb.size:
            rest_a, rest_b = (t.factors[1:] if take_first else t.factors[:-1] for t in (a, b))
            return [(Product(rest_a), Product(rest_b)), (fa, fb)]
    fa, fb = a.factors[0], b.factors[0]
    if fa.size < fb.size:
        a, b, fa, fb = b, a, fb, fa
    if fa.size % fb.size:
        raise Mismatch(f"factors of {fa.size} and {fb.size} elements share no boundary")
    outer, inner = factor(fa, (fb.size, fa.size // fb.size))
    return [(Product((inner, *a.factors[1:])), Product(b.factors[1:])), (outer, fb)]


def split(t: Type, at: int) -> tuple[Type, Type]:
    """Cuts ``t`` in two after ``at`` elements; a variable is bound to the concatenation of two new ones."""
    t = resolve(t)
    if at == 0:
        return Fixed(0), t
    if at == t.size:
        return t, Fixed(0)
    if not 0 < at < t.size:
        raise Mismatch(f"cannot cut {t.size} elements at {at}")
    if isinstance(t, Fixed):
        return Fixed(at, t.reason), Fixed(t.size - at, t.reason)
    if isinstance(t, Var):
        left, right = fresh(at, t.sources), fresh(t.size - at, t.sources)
        t.bound = Concat((left, right))
        return left, right
    if isinstance(t, Concat):
        return _split_concat(t, at)
    return _split_product(t, at)


def _split_concat(t: Concat, at: int) -> tuple[Type, Type]:
    before: list[Type] = []
    for index, part in enumerate(t.parts):
        if at < part.size:
            left, right = split(part, at)
            return _concat([*before, left]), _concat([right, *t.parts[index + 1 :]])
        before.append(part)
        at -= part.size
    raise AssertionError("the cut lies inside the concatenation")


def _split_product(t: Product, at: int) -> tuple[Type, Type]:
    head, inner = t.factors[0], _product(t.factors[1:])
    whole, remainder = divmod(at, inner.size)
    left, right = split(head, whole)
    if remainder == 0:
        return _product([left, inner]), _product([right, inner])
    # the cut runs through one element of the outer factor: that element is held apart, and its inside is cut
    _, after = split(right, 1)
    inner_left, inner_right = split(inner, remainder)
    return (
        _concat([_product([resolve(left), resolve(inner)]), inner_left]),
        _concat([inner_right, _product([resolve(after), resolve(inner)])]),
    )


def factor(t: Type, sizes: Sequence[int]) -> list[Type]:
    """New types of the given sizes, outermost first, whose product is ``t`` (what a reshape of one dimension does)."""
    if prod(sizes) != t.size:
        raise Mismatch(f"{t.size} elements cannot be laid out as {tuple(sizes)}")
    origin = sources(t)
    factors = [fresh(size, origin) for size in sizes]
    unify(t, Product(tuple(factors)))
    return factors
