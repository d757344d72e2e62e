"""Elastic modules: the user's own classes, whose tensors follow the active widths.

``Elastic<Cls>`` is generated from a module's class: its tensor attributes that hold width variables become properties.
In target mode a property returns the original tensor itself, so the target is never copied, moved or sliced. In
augmented mode it returns the tensor assembled for the active widths from the original and the extra blocks beside it.
A few integers (``groups``, ``num_groups``, ...) follow the same way, and in augmented mode a forward whose text holds
widths is replaced by its rewritten form. The swap is undone exactly by ``passes.extract``.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from netaug_fx.assembly import MUTATED, SHARED, STATISTIC, ElasticTensor, assemble, in_format_of, selections
from netaug_fx.errors import BranchError, InputError
from netaug_fx.guards import expect
from netaug_fx.passes.layout import Layout, Selection, Widths, positions, shape, size

STATE = "_netaug"
_MARK = "_netaug_elastic"
MADE_BY = "_netaug_made_by"
"""On classes that cannot be found by their name: the function that makes them, and its arguments."""

# Integers that torch.nn keeps as attributes and reads in its forward: class -> attribute -> name noted by the rules.
INTEGER_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("groups",),
    nn.GroupNorm: ("num_groups",),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.modules.instancenorm._InstanceNorm: ("num_features",),
    nn.MultiheadAttention: ("num_heads", "embed_dim"),
}


def integer_attributes(module: nn.Module) -> tuple[str, ...]:
    """Names of a module's integer attributes that follow the active widths."""
    return tuple(name for cls, names in INTEGER_ATTRIBUTES.items() if isinstance(module, cls) for name in names)


class Active:
    """The widths that all elastic modules of one supernet follow; one object, shared by them.

    Attributes:
        widths: Width of every group, or None in target mode.
        widest: The largest width of every group.
        statistics: Norm statistics to use in augmented mode, by buffer name; None for batch statistics. A missing one
            is made on first use, at the active width.
        scratch: What a forward wrote into its buffers in the augmented pass at hand; forgotten after it.
        selected: By tensor, what is active at the present widths, where it was found before the pass: torch.compile
            can follow that, but not how it is found.
        assembling: True while a tensor is put together, so that whoever watches operators can look away.
        shapes_only: Give tensors of the right shape without assembling them (for runs on fake tensors).
    """

    def __init__(self, widest: Widths) -> None:
        self.widths: Widths | None = None
        self.widest = widest
        self.statistics: dict[str, Tensor] | None = None
        self.scratch: dict[str, Tensor] = {}
        self.selected: dict[str, dict[int, Selection]] = {}
        self.assembling = False
        self.shapes_only = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Active:
        return Active(self.widest)  # a copy made within an augmented pass is a target again

    def __reduce__(self) -> tuple[Any, ...]:
        return Active, (self.widest,)


@dataclass
class ForwardSource:
    """The text of a rewritten forward and the names it uses, kept as text so that it can be pickled.

    Attributes:
        code: The text.
        names: What it uses beside its arguments.
        function: The forward, taking the module as ``self``. It is there from the start, since ``torch.compile`` can
            follow it, but not how it is made.
    """

    code: str
    names: dict[str, Any]

    def __post_init__(self) -> None:
        self.function = self._function()

    def __getstate__(self) -> dict[str, Any]:
        return {"code": self.code, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.code, self.names = state["code"], state["names"]
        self.__post_init__()

    @classmethod
    def of(cls, code: str, names: dict[str, Any]) -> ForwardSource:
        """Keeps modules by name, everything else as it is."""
        return cls(code, {k: _ByName(v.__name__) if isinstance(v, ModuleType) else v for k, v in names.items()})

    def is_like(self, other: ForwardSource) -> bool:
        """Whether both are the same text, with the same things behind its names."""
        ours, theirs = self.names, other.names
        return (self.code, ours.keys()) == (other.code, theirs.keys()) and all(
            ours[name] is theirs[name]
            or (isinstance(ours[name], (_ByName, float)) and repr(ours[name]) == repr(theirs[name]))
            for name in ours
        )

    def _function(self) -> Callable[..., Any]:
        names: dict[str, Any] = {
            k: importlib.import_module(v.name) if isinstance(v, _ByName) else v for k, v in self.names.items()
        }
        exec(compile(self.code, "<netaug_fx rewritten forward>", "exec"), names)
        function: Callable[..., Any] = names["forward"]
        return function


@dataclass(frozen=True)
class _ByName:
    name: str


@dataclass
class ModuleState:
    """What an elastic module knows about itself; lives in its ``__dict__`` under ``_netaug``."""

    path: str
    active: Active
    tensors: dict[str, ElasticTensor]
    integers: dict[str, Layout | tuple[Layout, ...]]
    sizes: tuple[Layout, ...] = ()
    forwards: dict[bool, ForwardSource] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)  # attributes whose values the rewritten forwards hold
    own_forward: Callable[..., Any] | None = None  # where the instance chose its forward (``self.forward = ...``)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleState:
        # all but the active widths is immutable, and shared
        active, own = copy.deepcopy(self.active, memo), copy.deepcopy(self.own_forward, memo)
        return replace(self, active=active, own_forward=own)

    def size(self, index: int) -> int:
        """The size that a rewritten forward asks for, at the active widths."""
        return size(self.sizes[index], self.active.widths)


# -- values at the active widths -------------------------------------------------------------------


def _current(module: nn.Module, name: str) -> Any:
    """The value of an elastic tensor attribute at the active widths."""
    state: ModuleState = module.__dict__[STATE]
    active = state.active
    registered: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    base = registered[name]
    if active.widths is None or base is None:
        return base
    tensor = state.tensors[name]
    if tensor.kind == STATISTIC:
        return _statistic(base, tensor, active, can_do_without="track_running_stats" in module.__dict__)
    written = tensor.kind in (MUTATED, SHARED)
    if not tensor.dims and not written:
        return base
    if tensor.full_name in active.scratch:
        return active.scratch[tensor.full_name]
    active.assembling = True
    try:
        if active.shapes_only and tensor.dims:
            result = in_format_of(base, base.new_empty(shape(tensor.layouts, active.widths)))
        elif tensor.dims:
            blocks = [registered[extra] for extra in tensor.extras]
            selected = active.selected.get(tensor.full_name)
            if selected is None:
                selected = selections(tensor, active.widths, active.widest, base.device)
            result = assemble(base, blocks, tensor, selected)
        else:
            result = base.clone()
        # torch.compile cannot ask a tensor for this.
        if written and not torch.compiler.is_compiling() and result.is_inference():
            with torch.inference_mode(False):
                result = result.clone()  # later passes of this context, with gradients, write into it
        if not result.requires_grad and base.requires_grad:
            result.requires_grad_()  # without gradients too: torch picks some kernels by this flag
        if written:
            active.scratch[tensor.full_name] = result
        return result
    finally:
        active.assembling = False


def _statistic(base: Tensor, tensor: ElasticTensor, active: Active, can_do_without: bool) -> Tensor | None:
    """A norm's running statistics in an augmented pass: those kept for it, or None for the batch's.

    A norm of the user's own may not be able to do without; it gets the target's, continued for the extra channels,
    for this pass alone.
    """
    if active.statistics is None and can_do_without:
        return None
    kept = active.scratch if active.statistics is None else active.statistics
    if tensor.full_name not in kept:
        active.assembling = True
        start = torch.ones if tensor.name.endswith("var") else torch.zeros
        assert active.widths is not None
        wide = start(shape(tensor.layouts, active.widths), dtype=base.dtype, device=base.device)
        if active.statistics is None and base.dim() == 1:
            wide[positions(tensor.layouts[0], None, active.widths).to(base.device)] = base
        kept[tensor.full_name] = wide
        active.assembling = False
    value = kept[tensor.full_name]
    if value.dtype != base.dtype or value.device != base.device:  # the supernet was converted in the meantime
        kept[tensor.full_name] = value = value.to(dtype=base.dtype, device=base.device)
    return value


# -- classes ---------------------------------------------------------------------------------------


def _tensor_property(name: str) -> property:
    def get(self: nn.Module) -> Any:
        state = self.__dict__[STATE]
        try:
            if state.active.widths is None:
                registered = self._parameters
                return registered[name] if name in registered else self._buffers[name]
            return _current(self, name)
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None

    return property(get, doc=f"{name} at the active widths")


def _integer_property(name: str) -> property:
    def get(self: nn.Module) -> Any:
        state = self.__dict__[STATE]
        widths = state.active.widths
        if widths is None:
            return self.__dict__[name]
        layout = state.integers[name]
        if isinstance(layout, tuple):
            return tuple(size(item, widths) for item in layout)
        return size(layout, widths)

    def set_(self: nn.Module, value: Any) -> None:
        self.__dict__[name] = value

    return property(get, set_, doc=f"{name} at the active widths")


def _tracks_statistics(self: nn.Module) -> Any:
    """Off in augmented passes without statistics of their own, which use those of the batch."""
    active = self.__dict__[STATE].active
    if active.widths is not None and active.statistics is None:
        return False
    return self.__dict__["track_running_stats"]


def _set_tracks_statistics(self: nn.Module, value: Any) -> None:
    self.__dict__["track_running_stats"] = value


def elastic_class(
    base: type[nn.Module],
    tensors: frozenset[str],
    integers: frozenset[str],
    rewritten: bool,
    mixin: type | None = None,
) -> type[nn.Module]:
    """The subclass of ``base`` whose given attributes follow the active widths.

    Args:
        base: The user's class; its name is kept, so that ``repr`` reads as before.
        tensors: Names of parameters and buffers that become properties.
        integers: Names of integer attributes that become properties.
        rewritten: Whether augmented passes use the rewritten forward in the module's state.
        mixin: A class to add behind ``base`` (the supernet's root).
    """
    key = (base, tensors, integers, rewritten, mixin)
    if key not in _classes:
        _classes[key] = _make_class(*key)
    return _classes[key]


_Key = tuple[type[nn.Module], frozenset[str], frozenset[str], bool, type | None]
_classes: dict[_Key, type[nn.Module]] = {}


def _make_class(
    base: type[nn.Module], tensors: frozenset[str], integers: frozenset[str], rewritten: bool, mixin: type | None
) -> type[nn.Module]:
    namespace: dict[str, Any] = {name: _tensor_property(name) for name in tensors}
    namespace.update({name: _integer_property(name) for name in integers - {"track_running_stats"}})
    if "track_running_stats" in integers:
        namespace["track_running_stats"] = property(_tracks_statistics, _set_tracks_statistics)
    if rewritten:

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            state: ModuleState = self.__dict__[STATE]
            own = state.own_forward
            if state.active.widths is None:
                return base.forward(self, *args, **kwargs) if own is None else own(*args, **kwargs)
            try:
                for name, value in state.constants.items():
                    expect(self.__dict__.get(name), value, f"attribute {name!r}")
                return state.forwards[self.training].function(self, *args, **kwargs)
            except BranchError as error:
                raise error.within(state.path, type(self).__name__) from None

        forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
        namespace["forward"] = forward

    def set_attribute(self: nn.Module, name: str, value: Any) -> None:
        state: ModuleState | None = self.__dict__.get(STATE)
        if state is not None and state.active.widths is not None and name in self._buffers and name in state.tensors:
            # an augmented pass that replaces a buffer leaves the target's alone
            state.active.scratch[state.tensors[name].full_name] = value
        elif _is_lost(self, name) and not isinstance(value, nn.Parameter):
            raise _taken_away(self, name)
        else:
            super(created, self).__setattr__(name, value)

    def delete_attribute(self: nn.Module, name: str) -> None:
        state: ModuleState | None = self.__dict__.get(STATE)
        if state is not None and name in state.tensors:
            raise _taken_away(self, name)
        super(created, self).__delattr__(name)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        if issubclass(base, fx.GraphModule):
            raise pickle.PicklingError(
                "a torch.fx GraphModule of a supernet has a class of its own that nothing can import: keep the "
                "state_dict, and load it into a supernet made anew"
            )
        reduced: tuple[Any, ...] = super(created, self).__reduce_ex__(2)  # type: ignore[assignment]
        _, _, state, *rest = reduced
        found = vars(base).get(MADE_BY, base)
        return (_rebuild, (found, tensors, integers, rewritten, mixin), state, *rest)

    if issubclass(base, fx.GraphModule):  # whose own copy is built from its graph, and is elastic no more
        namespace["__deepcopy__"] = _deep_copy
    namespace.update(
        __reduce_ex__=reduce,
        **{_MARK: True},
        __setattr__=set_attribute,
        __delattr__=delete_attribute,
        __module__=base.__module__,
        __qualname__=base.__qualname__,
        __doc__=base.__doc__,
    )
    bases = (base,) if mixin is None else (base, mixin)
    metaclass: Any = type(base)
    try:
        created: type[nn.Module] = metaclass(base.__name__, bases, namespace)
    except TypeError as error:  # __init_subclass__ that wants arguments
        raise InputError(
            f"no subclass of {base.__module__}.{base.__qualname__} can be made ({error}), and every module that grows "
            "becomes an instance of one: give the arguments of its __init_subclass__ defaults, or pin it"
        ) from error
    return created


def _deep_copy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    twin: nn.Module = object.__new__(type(self))
    memo[id(self)] = twin
    twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return twin


def _is_lost(module: nn.Module, name: str) -> bool:
    """Whether an elastic tensor is no longer registered (pruning and weight normalisation take it off first)."""
    state: ModuleState | None = module.__dict__.get(STATE)
    return (
        state is not None and name in state.tensors and name not in module._parameters and name not in module._buffers
    )


def _taken_away(module: nn.Module, name: str) -> InputError:
    return InputError(
        f"{name!r} of {type(module).__name__} follows the supernet's widths, so nothing else can compute it: apply "
        "parametrizations, pruning and weight or spectral normalisation to the model before netaug_fx.augment"
    )


def _rebuild(base: Any, *key: Any) -> nn.Module:
    if not isinstance(base, type):
        function, arguments = base
        base = function(*arguments)
    cls = elastic_class(base, *key)
    return cls.__new__(cls)


def base_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The user's class that an elastic class was made from.

    Raises:
        InputError: the class was changed after augmenting (by a parametrization, say).
    """
    if _MARK not in vars(cls):
        raise InputError(
            f"a module's class became {cls.__name__} after augment: take parametrizations off before extract, "
            "or put them on before augment"
        )
    return cls.__bases__[0]


def extra_blocks(supernet: nn.Module) -> Iterator[Tensor]:
    """The extra blocks of all modules; tied ones as often as they are held."""
    for module in supernet.modules():
        state = module.__dict__.get(STATE)
        if isinstance(state, ModuleState):
            for name in (extra for tensor in state.tensors.values() for extra in tensor.extras):
                block = module._parameters[name] if name in module._parameters else module._buffers[name]
                assert block is not None
                yield block


def is_elastic(module: nn.Module) -> bool:
    """Whether a module's class was generated here."""
    return STATE in module.__dict__
