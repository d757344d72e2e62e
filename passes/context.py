"""What a rule sees: the channel types of tensors, and where it writes down what it learned about an operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Fixed, Reason, Source, Type, Var

Dims = list[Type]

_TYPES = "_netaug_dims"
_WEIGHT = "_netaug_weight"
_NAME = "_netaug_name"


@dataclass(frozen=True)
class Mixing:
    """A statistic taken across channels that may grow: extra channels change what the target's channels see."""

    op: str
    module: str
    location: str
    over: tuple[Type, ...]


class Refusal(Exception):
    """A rule cannot say how the result depends on its inputs; the message is the reason of the pin."""


@dataclass
class Context:
    """Types of the tensors seen so far, and the facts that the rules noted."""

    op: str = ""
    module: str = ""
    location: str = ""
    readers: dict[Source, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    writers: dict[Source, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    heads: list[Type] = field(default_factory=list)
    mixing: list[Mixing] = field(default_factory=list)
    statistics: set[str] = field(default_factory=set)
    mutated: set[str] = field(default_factory=set)
    notes: dict[str, Type] = field(default_factory=dict)
    written: dict[int, Any] = field(default_factory=dict)  # storages that an activation was written into, by address
    before: dict[int, Dims] = field(default_factory=dict)  # types of an in-place operator's arguments, by id

    # -- types of tensors --------------------------------------------------------------------------

    def dims(self, tensor: Tensor) -> Dims:
        """The types of a tensor's dimensions; a tensor never seen before is a constant of fixed shape."""
        dims: Dims | None = self.before.get(id(tensor)) or getattr(tensor, _TYPES, None)
        if dims is None or (id(tensor) not in self.before and len(dims) != tensor.dim()):
            reason = self.reason("the tensor is a constant made in the forward")
            dims = [Fixed(int(size), reason) for size in tensor.shape]
            setattr(tensor, _TYPES, dims)
        return list(dims)

    def set_dims(self, tensor: Tensor, dims: Sequence[Type], *, weight: bool | None) -> None:
        """Gives a tensor its types; ``weight`` is True for tensors made from parameters and buffers alone."""
        self.before.pop(id(tensor), None)
        setattr(tensor, _TYPES, list(dims))
        setattr(tensor, _WEIGHT, weight)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor was made from parameters and buffers alone."""
        return self._flag(tensor) is True

    def _flag(self, tensor: Tensor) -> bool | None:
        flag: bool | None = getattr(tensor, _WEIGHT, None)
        if flag is not False and self.written and _storage(tensor)._cdata in self.written:
            return False
        return flag

    def weight_of(self, tensors: Iterable[Tensor]) -> bool | None:
        """The weight flag of a result: a weight if no input is an activation, None for constants alone."""
        flags = [self._flag(tensor) for tensor in tensors]
        if False in flags:
            return False
        return True if True in flags else None

    def name(self, tensor: Tensor, name: str) -> None:
        """Tells a parameter's or buffer's name."""
        setattr(tensor, _NAME, name)

    # -- constraints -------------------------------------------------------------------------------

    def reason(self, text: str) -> Reason:
        """A reason that names the operator at hand."""
        return Reason(text, self.op, self.module, self.location)

    def unify(self, a: Type, b: Type) -> None:
        """``a`` and ``b`` are one width."""
        channels.unify(a, b, self.reason("it is tied to a dimension of fixed size"))

    def pin(self, t: Type, text: str) -> None:
        """``t`` stays as it is."""
        channels.pin(t, self.reason(text))

    # -- facts -------------------------------------------------------------------------------------

    def note(self, name: str, t: Type) -> None:
        """The operator's integer argument ``name`` is the size of ``t``."""
        self.notes[name] = t

    def consumes(self, weight_dim: Type) -> None:
        """A weight's dimension is summed over: its extra part feeds extra channels into the target."""
        for source in channels.sources(weight_dim):
            self.readers[source][self.module] = None

    def produces(self, weight_dim: Type) -> None:
        """A weight's dimension becomes channels of the result: the module at hand writes them."""
        for source in channels.sources(weight_dim):
            self.writers[source][self.module] = None

    def mixes(self, over: Iterable[Type]) -> None:
        """A statistic is taken across these dimensions."""
        growing = tuple(t for t in over if not isinstance(channels.resolve(t), Fixed))
        if growing:
            self.mixing.append(Mixing(self.op, self.module, self.location, growing))

    def writes(self, tensor: Tensor, sources: Iterable[Tensor]) -> None:
        """An operator writes into a tensor.

        Of a parameter or buffer, or a view of one, the name is kept. Whatever shares memory with a tensor that an
        activation is written into is an activation from then on.
        """
        if self.weight_of(sources) is False and getattr(tensor, _WEIGHT, None) is not False:
            storage = _storage(tensor)
            self.written[storage._cdata] = storage  # held, so that the address is not used again
        if getattr(tensor, _WEIGHT, None) is True:
            name = getattr(tensor, _NAME, None)
            self.mutated.update(
                [name] if name else {name for dim in self.dims(tensor) for name, _ in channels.sources(dim)}
            )

    def marks_statistics(self, tensor: Tensor | None) -> None:
        """A buffer holds a norm's running statistics."""
        if tensor is not None:
            name = getattr(tensor, _NAME, None)
            derived = (name for dim in getattr(tensor, _TYPES, ()) for name, _ in channels.sources(dim))
            self.statistics.update(derived if name is None else [name])


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def growing(t: Type) -> bool:
    """Whether any variable is left in ``t``."""
    return next(channels.variables(t), None) is not None


def space(tensor: Tensor, start: int) -> Dims:
    """The dimensions of a result from ``start`` on, which are space: their sizes follow the input's."""
    return [Fixed(int(size), Reason(channels.OF_SPACE)) for size in tensor.shape[start:]]


def as_var(size: int) -> Type:
    """A new width that no tensor has yet."""
    return Var(size) if size > 1 else Fixed(size)
