"""The supernet: what the root of a widened model adds to the user's class."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from netaug_fx.assembly import ElasticTensor, selections
from netaug_fx.attributes import assigns_attributes, kept
from netaug_fx.elastic import STATE, Active, ModuleState
from netaug_fx.errors import CheckpointError, InputError
from netaug_fx.passes.graph import KINDS, Group, Pin
from netaug_fx.passes.layout import Widths
from netaug_fx.split import Split, elastic_tensors, keep_shared_

CONTROL = "_netaug_control"
STATE_KEY = "netaug.draws"


class Control:
    """The groups of a supernet and the generator of its widths; one plain object on the root.

    Draw number k depends on ``seed`` and k alone (and on the pool asked for, if one is), so a resumed run repeats the
    uninterrupted one, and ranks agree without talking. Both numbers travel in the state_dict.
    """

    def __init__(
        self, active: Active, groups: tuple[Group, ...], pins: tuple[Pin, ...], seed: int, split: Split | None = None
    ) -> None:
        self.active = active
        self.groups = groups
        self.pins = pins
        self.seed = seed
        self.split = split  # of what ``evolve`` made
        self.assigns = False  # whether a forward may assign attributes, which ``augmented`` then takes back
        self.growing: tuple[ElasticTensor, ...] = ()  # what is put together in passes of wider nets
        self.in_dense = False
        self.draws = 0
        self.calibrated: dict[Widths, dict[str, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        twin = Control(copy.deepcopy(self.active, memo), self.groups, self.pins, self.seed, self.split)
        twin.assigns, twin.growing = self.assigns, self.growing
        twin.draws, twin.calibrated = self.draws, copy.deepcopy(self.calibrated, memo)
        return twin

    def sample(
        self, kinds: Collection[str] | None = None, pool: int | None = None, pool_number: int = 0
    ) -> dict[str, int]:
        """Draws a width for every group, uniform and independent; kinds not listed keep the target's.

        With ``pool``, one of that many assignments, which depend on ``seed`` and ``pool_number`` alone.
        """
        if kinds is not None:
            check_kinds(kinds)
        if pool is not None and not (_is_whole(pool) and 1 <= pool < 2**32):
            raise InputError(f"pool must be the number of assignments to draw from, at least 1, not {pool!r}")
        if not (_is_whole(pool_number) and 0 <= pool_number < 2**31):
            raise InputError(f"pool_number must be a whole number from 0, such as the epoch's, not {pool_number!r}")
        generator = random.Random(self.seed * 2**64 + self.draws)
        if pool is not None:  # numbers that no draw will reach
            first = self.seed * 2**64 + 2**63 + pool_number * 2**32
            generator = random.Random(first + generator.randrange(pool))
        self.draws += 1
        return self._assigned({g.name: generator.choice(g.factors or g.choices) for g in self.groups}, kinds)

    def widest(self, kinds: Collection[str] | None = None) -> dict[str, int]:
        """The widest net that `sample` can draw: with ``kinds``, of those that keep the target's other widths."""
        if kinds is not None:
            check_kinds(kinds)
        return self._assigned({g.name: (g.factors or g.choices)[-1] for g in self.groups}, kinds)

    def _assigned(self, chosen: Mapping[str, float], kinds: Collection[str] | None) -> dict[str, int]:
        """Widths of the groups from what was chosen for each: a width, or a factor beside its feeder's present one."""
        original = {group.name: group.width for group in self.groups}
        widths: dict[str, int] = {}
        for group in sorted(self.groups, key=lambda group: bool(group.feeder)):
            if kinds is not None and group.kind not in kinds:
                widths[group.name] = group.width
            elif group.feeder:
                present = widths[group.feeder] / original[group.feeder]
                widths[group.name] = group.widened(chosen[group.name] * present)
            else:
                widths[group.name] = int(chosen[group.name])
        return {group.name: widths[group.name] for group in self.groups}

    @contextmanager
    def at(self, widths: Widths, statistics: dict[str, Tensor] | None, device: torch.device) -> Iterator[None]:
        """A pass at these widths and norm statistics; at its end everything is as it was."""
        active = self.active
        # torch.compile can follow what is found here, but not how
        selected = {t.full_name: selections(t, widths, active.widest, device) for t in self.growing}
        before = active.widths, active.statistics, active.selected
        active.widths, active.statistics, active.selected = widths, statistics, selected
        active.scratch = {}
        try:
            yield
        finally:
            active.widths, active.statistics, active.selected = before
            active.scratch = {}

    def as_widths(self, widths: Mapping[str, int]) -> Widths:
        """Checks an assignment by group name; groups left out keep the target's width."""
        if not isinstance(widths, Mapping):
            raise InputError(f"widths must be a mapping from group name to width, not {widths!r}")
        known = {group.name: group for group in self.groups}
        for name, width in widths.items():
            if name not in known:
                raise InputError(f"widths names the unknown group {name!r}; the groups are {', '.join(known)}")
            low, high = known[name].width, known[name].choices[-1]
            if isinstance(width, bool) or not isinstance(width, int) or not low <= width <= high:
                raise InputError(f"widths[{name!r}] must be an integer from {low} to {high}, not {width!r}")
        return tuple(widths.get(group.name, group.width) for group in self.groups)


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class _Shy(Generic[T]):
    """An attribute of the class that gives way to one of the user's model with the same name."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.name = function.__name__

    def __get__(self, instance: Any, owner: Any = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        for own in _registered(instance, self.name):
            return own  # type: ignore[no-any-return]
        return self.function(instance)


class _ShyMethod:
    """A method that gives way likewise; looked up on the class, it is the function itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.name = function.__name__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self.function
        for own in _registered(instance, self.name):
            return own
        return functools.partial(self.function, instance)


def _shy_method(function: F) -> F:
    return _ShyMethod(function)  # type: ignore[return-value]


def _registered(instance: Any, name: str) -> list[Any]:
    """What the user's model registered under a name: parameters, buffers and submodules come after class attributes."""
    stores = (instance.__dict__.get(store, {}) for store in ("_parameters", "_buffers", "_modules"))
    return [store[name] for store in stores if name in store]


class Supernet(nn.Module):
    """What the root of a supernet has beside the attributes of the user's class.

    Where the user's model has an attribute of the same name, the model's wins, because its forward relies on it; the
    supernet's is then reached as ``Supernet.augmented(model)`` or ``control(model).groups``.
    """

    @_Shy
    def groups(self) -> tuple[Group, ...]:
        """The groups that grow, with the widths they may take."""
        return control(self).groups

    @_Shy
    def pins(self) -> tuple[Pin, ...]:
        """Dimensions that stay as they are, with reasons."""
        return control(self).pins

    @_Shy
    def widths(self) -> dict[str, int]:
        """The current width of every group, by name; the target's outside ``augmented``."""
        own = control(self)
        current = own.active.widths
        names = [group.name for group in own.groups]
        return dict(zip(names, current or [group.width for group in own.groups], strict=True))

    @_Shy
    def widest(self) -> dict[str, int]:
        """The largest width of every group, by name."""
        return control(self).widest()

    @_shy_method
    def sample(
        self, kinds: Collection[str] | None = None, pool: int | None = None, pool_number: int = 0
    ) -> dict[str, int]:
        """Draws an assignment from the supernet's own generator.

        Args:
            kinds: Kinds of groups to widen (``{"inner"}``); all by default. The other groups keep the target's width.
            pool: Draw from that many fixed assignments instead of from all.
            pool_number: Which pool: another one for each number, such as that of the epoch.

        Raises:
            InputError: an unknown kind, a pool of less than one, or a number below zero.
        """
        return control(self).sample(kinds, pool, pool_number)

    @_shy_method
    @contextmanager
    def augmented(self, widths: Mapping[str, int] | None = None) -> Iterator[dict[str, int]]:
        """Within this context the supernet is one wider net around the target.

        Args:
            widths: Width by group name, any integer from the target's to the largest; groups left out keep the
                target's. By default one assignment is drawn.

        Norms use the batch's statistics; in evaluation mode (as set before entering) those that ``calibrate_`` kept
        for these widths, if it did. What forwards assign to plain attributes (counters, caches, a loss to be read) is
        there within the context, and taken back at its end; running statistics are not touched at all.

        Yields:
            The widths in use.

        Raises:
            InputError: an unknown group, or a width outside its range.
        """
        own = control(self)
        chosen = own.as_widths(own.sample() if widths is None else widths)
        if own.split is not None and own.active.widths is not None:
            raise InputError(
                "augmented() was called within dense(), whose norm statistics would be lost: leave it first"
            )
        if self.training:
            own.calibrated.clear()  # the weights they were estimated for are about to change
        statistics = None if self.training else own.calibrated.get(chosen)
        with own.at(chosen, statistics, _device(self)), kept(self) if own.assigns else nullcontext():
            yield dict(zip((group.name for group in own.groups), chosen, strict=True))

    @_shy_method
    @contextmanager
    def dense(self) -> Iterator[None]:
        """Within this context the supernet that ``evolve`` made is the dense net, with its own norm statistics.

        Call ``backward()`` within it, too, where activations are checkpointed: what is computed again for it would
        otherwise be computed with the slim net. Norm statistics are written back when it ends, and before the
        supernet's state_dict is taken or loaded, and before it is copied, pickled or extracted.

        Raises:
            InputError: the supernet is one of ``augment``'s, or in another pass; or a forward replaced a buffer by what
                cannot be divided between the two hypotheses.
        """
        own = control(self)
        split_of(self)
        if own.active.widths is not None:
            raise InputError("dense() was called within another pass: leave its context first")
        with own.at(own.active.widest, None, _device(self)):
            own.in_dense = True
            try:
                yield
            finally:
                try:
                    settle_(self)
                finally:
                    own.in_dense = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles hold what a dense pass under way has left in buffers."""
        if is_supernet(self):
            settle_(self)
        return super().__reduce_ex__(protocol)

    @_shy_method
    def target_state_dict(self) -> dict[str, Any]:
        """The state_dict of the target alone: it loads into the plain model."""
        state: dict[str, Any] = self.state_dict()
        extras = set(extra_names(self))
        return {key: value for key, value in state.items() if key != STATE_KEY and key not in extras}


def _device(supernet: nn.Module) -> torch.device:
    return next((parameter.device for parameter in supernet.parameters()), torch.device("cpu"))


def control(supernet: Any) -> Control:
    """The control object of a supernet.

    Raises:
        InputError: the module is not a supernet.
    """
    found = getattr(supernet, "__dict__", {}).get(CONTROL)
    if not isinstance(found, Control):
        raise InputError(
            f"{type(supernet).__name__} is not a supernet: give what netaug_fx.augment(model) returned "
            "(not what DistributedDataParallel or torch.compile put around it)"
        )
    return found


def settle_(supernet: nn.Module, *_of_hook: Any) -> None:
    """Writes what a dense pass under way has left in norm statistics so far to where they are kept."""
    own = control(supernet)
    if own.in_dense:
        keep_shared_(supernet, own.active)
        own.active.scratch = {}


def split_of(supernet: nn.Module) -> Split:
    """How ``evolve`` split the model.

    Raises:
        InputError: the module is no supernet, or one of ``augment``'s.
    """
    split = control(supernet).split
    if split is None:
        raise InputError(
            f"this {type(supernet).__name__} was made by netaug_fx.augment and is not split: give what "
            "netaug_fx.evolve(model) returned"
        )
    return split


def check_kinds(kinds: Any) -> None:
    """Accepts a collection of kinds of groups.

    Raises:
        InputError: it is something else, or holds an unknown kind.
    """
    if isinstance(kinds, str) or not isinstance(kinds, Collection) or not set(kinds) <= set(KINDS):
        raise InputError(f"kinds must be a collection of {' and '.join(map(repr, KINDS))}, not {kinds!r}")


def is_supernet(model: Any) -> bool:
    """Whether a model is what ``augment`` returns."""
    return isinstance(getattr(model, "__dict__", {}).get(CONTROL), Control)


def install(
    supernet: nn.Module, groups: tuple[Group, ...], pins: tuple[Pin, ...], seed: int, split: Split | None = None
) -> None:
    """Puts the control object on the root of a widened model and lets its state travel in the state_dict."""
    state: ModuleState = supernet.__dict__[STATE]
    supernet.__dict__[CONTROL] = Control(state.active, groups, pins, seed, split)
    control(supernet).assigns = assigns_attributes(supernet)
    control(supernet).growing = tuple(tensor for _, tensor in elastic_tensors(supernet) if tensor.dims)
    supernet.register_state_dict_pre_hook(settle_)  # type: ignore[no-untyped-call]
    supernet.register_state_dict_post_hook(save_draws)  # type: ignore[no-untyped-call]
    supernet.register_load_state_dict_pre_hook(load_draws)  # type: ignore[no-untyped-call]


def extra_names(supernet: nn.Module) -> Iterator[str]:
    """Names of all extra blocks in the state_dict."""
    for path, module in supernet.named_modules(remove_duplicate=False):
        state = module.__dict__.get(STATE)
        if isinstance(state, ModuleState):
            for tensor in state.tensors.values():
                yield from (f"{path}.{extra}" if path else extra for extra in tensor.extras)


def save_draws(module: nn.Module, state_dict: dict[str, Any], prefix: str, _local_metadata: Any) -> None:
    """state_dict hook: seed and count travel along, and what ``reset_`` draws by that no layer knows."""
    own = control(module)
    facts = [] if own.split is None else [own.split.keep, *chain.from_iterable(own.split.first.values())]
    numbers = torch.tensor(facts, dtype=torch.float64).view(torch.int64)
    state_dict[prefix + STATE_KEY] = torch.cat([torch.tensor([own.seed, own.draws], dtype=torch.int64), numbers])


def load_draws(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """Restores the generator; a plain model's checkpoint leaves generator and extra blocks as they are."""
    settle_(module)  # else what a dense pass left would later be written over what is loaded
    own = control(module)
    own.calibrated.clear()
    saved = state_dict.pop(prefix + STATE_KEY, None)
    if saved is not None:
        facts = 0 if own.split is None else 1 + 2 * len(own.split.first)
        if not isinstance(saved, Tensor) or saved.shape != (2 + facts,) or saved.dtype != torch.int64:
            more = "" if own.split is None else f", and {facts} that tell of the split and of the first weights"
            raise CheckpointError(
                f"{prefix + STATE_KEY} must be a tensor of two integers (seed and draws{more}), not {saved!r}: "
                "it is of another kind of supernet, or of another model"
            )
        if own.split is not None:
            own.split = _with_facts(own.split, saved[2:].cpu().contiguous().view(torch.float64).tolist())
        own.seed, own.draws = (int(value) for value in saved[:2])
        return
    extras = list(extra_names(module))
    if not any(prefix + name in state_dict for name in extras):
        present = module.state_dict()
        state_dict.update({prefix + name: present[name] for name in extras if name in present})


def _with_facts(split: Split, facts: Sequence[float]) -> Split:
    """The split with what a state_dict tells of the first weights.

    Raises:
        CheckpointError: it tells of another part that is fit: single weights would be taken for others.
    """
    keep, *moments = facts
    if keep != split.keep:
        raise CheckpointError(
            f"the checkpoint was split with keep={keep:g}, and this supernet with keep={split.keep:g}"
        )
    pairs = zip(moments[::2], moments[1::2], strict=True)
    return replace(split, first=dict(zip(split.first, pairs, strict=True)))
