"""Infer: the channel types of every parameter and buffer, by running the model on fake tensors.

In: a model and an input. Out: an ``Analysis``: which widths may grow, who writes and reads them, where statistics are
taken across them, and the sequence of operators with the types of their results, which ``check`` holds the widened net
against. The model is not touched: what runs is a copy on fake tensors, in training and in evaluation mode, watched at
the level of ATen operators, so that the user's Python (control flow, hooks, custom modules) is no obstacle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from netaug_fx.elastic import integer_attributes
from netaug_fx.errors import InputError, TraceError
from netaug_fx.passes import channels, recorder
from netaug_fx.passes.channels import Fixed, Reason, Source, Type
from netaug_fx.passes.context import Context, Mixing
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.observe import Observed
from netaug_fx.passes.recorder import OpRecord, plain_arguments
from netaug_fx.passes.rewrite import carries_sizes, may_carry_sizes, prepare_
from netaug_fx.passes.rules import lookup_leaf
from netaug_fx.passes.running import mode_of, neutral, output_tensors, quiet, seldom_collected
from netaug_fx.passes.source_scan import is_filled, names_used
from netaug_fx.passes.trace import ForwardTrace, first_line, is_traced, trace

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of the model's forward."""


@dataclass(frozen=True)
class TracedForward:
    """A forward that torch.fx follows.

    Attributes:
        graphs: By training mode; nodes carry types in their ``meta``.
        constants: Plain attributes of the module that the forward names, whose values the graphs hold.
    """

    graphs: Mapping[bool, fx.Graph]
    constants: Mapping[str, Any]


@dataclass(frozen=True)
class Analysis:
    """What ``infer`` found out about a model.

    Attributes:
        tensors: Types of the dimensions of every parameter and buffer, by its name in the model.
        owners: For every name, the first name of the same tensor (tied tensors have several); the facts below use it.
        readers: For a weight's dimension that is summed over, the paths of the modules that do it.
        writers: For a weight's dimension that becomes channels, the paths of the modules that do it.
        statistics: Names of buffers that hold a norm's running statistics.
        mutated: Names of buffers that a forward writes into.
        integers: Module path -> name of an integer argument of its operator -> the type whose size it is.
        forwards: Module path -> its traced forward, where it carries sizes that may have to follow a width.
        opaque: Module path -> why its forward cannot be traced (only where that matters).
        heads: Batch dimensions of products of two activations (attention heads).
        mixing: Statistics taken across widths that may grow.
        operators: For each training mode, the operators in order with the types of their results.
        fills_caches: The first call leaves something behind that later calls use.
        on_fake_tensors: Whether what ran was a copy on fake tensors.
    """

    tensors: Mapping[str, tuple[Type, ...]]
    owners: Mapping[str, str]
    readers: Mapping[Source, tuple[str, ...]]
    writers: Mapping[Source, tuple[str, ...]]
    statistics: frozenset[str]
    mutated: frozenset[str]
    integers: Mapping[str, Mapping[str, Type]]
    forwards: Mapping[str, TracedForward]
    opaque: Mapping[str, str]
    heads: tuple[Type, ...]
    mixing: tuple[Mixing, ...]
    operators: Mapping[bool, tuple[OpRecord, ...]]
    fills_caches: bool
    on_fake_tensors: bool

    def without_forward(self, path: str, why: str) -> Analysis:
        """The same, but a module's forward is taken for one that cannot be traced."""
        forwards = {name: forward for name, forward in self.forwards.items() if name != path}
        return replace(self, forwards=forwards, opaque={**self.opaque, path: why})


@seldom_collected()
def infer(model: nn.Module, inputs: Inputs, observed: Observed | None = None) -> Analysis:
    """Infers the channel types of ``model`` from one run on ``inputs`` in each training mode.

    What runs is a copy on fake tensors, unless the forward asks for values, or is seen to go another way on them.

    Args:
        model: Any module whose parameters are materialised; it is not changed.
        inputs: Positional and keyword arguments of its forward; only shapes and dtypes matter, unless the forward's
            control flow depends on values.
        observed: What the model was seen to do for real.

    Raises:
        InputError: the model is scripted, quantised, lazy or on the meta device.
        TraceError: the model does not run on the inputs; names the module where it failed.
    """
    refuse_unsuitable(model)
    try:
        return _Inference(model, inputs, observed, fake=True).run()
    except (DataDependentOutputException, DynamicOutputShapeException, _GoesAnotherWay):
        # values decide something in the forward, so they have to exist
        return _Inference(model, inputs, observed, fake=False).run()


class _GoesAnotherWay(Exception):
    """On fake tensors, other operators run than were observed."""


def is_lazy(module: nn.Module) -> bool:
    """Whether a module's own parameters are still to be made by its first run."""
    return any(isinstance(own, nn.parameter.UninitializedParameter) for own in module.parameters(recurse=False))


def refuse_unsuitable(model: nn.Module) -> None:
    """Lets pass only models whose forward is Python and whose parameters exist.

    Raises:
        InputError: a module is scripted, quantised, lazy or on the meta device.
    """
    for path, module in model.named_modules():
        where = f"module {path!r} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{where} is scripted: its Python forward is gone; give the model before torch.jit.script")
        if type(module).__name__ == "OptimizedModule":
            raise InputError(f"{where} is compiled: give the model before torch.compile, and compile the supernet")
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise InputError(f"{where} is quantised: augment the float model, and quantise what extract returns")
        if is_lazy(module):
            raise InputError(f"{where} is lazy: run the model once on an example input, so that its parameters exist")
        if (held := _closed_over(module.__dict__.get("forward"))) is not None:
            raise InputError(
                f"{where}: its forward was replaced by a function that holds a {type(held).__name__}, which a copy of "
                "the model would share; use types.MethodType(function, module), or a subclass"
            )
        if any(tensor.is_meta for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]):
            raise InputError(f"{where} is on the meta device: give it values first (model.to_empty, then load weights)")


def _closed_over(forward: Any) -> nn.Module | None:
    """A module that a function put in the place of a forward holds, other than as its own ``self``."""
    if not isinstance(forward, FunctionType):
        return None
    cells = [cell.cell_contents for cell in forward.__closure__ or () if is_filled(cell)]
    held = [cell.__self__ if isinstance(cell, MethodType) else cell for cell in cells]
    return next((each for each in held if isinstance(each, nn.Module)), None)


@dataclass
class _Inference:
    """One inference: a copy of the model, the context its rules write into, and what was recorded."""

    model: nn.Module
    inputs: Inputs
    observed: Observed | None
    fake: bool
    context: Context = field(default_factory=Context)
    integers: dict[str, dict[str, Type]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    fills_caches: bool = False
    forwards: dict[str, TracedForward] = field(default_factory=dict)
    seen: dict[bool, recorder.RuleMode] = field(default_factory=dict)

    def run(self) -> Analysis:
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if self.fake else None
        self.copy = self._copy_model()
        self.attributes = {path: integer_attributes(module) for path, module in self.copy.named_modules()}
        tensors = self._type_tensors()
        before, buffers = _attributes(self.copy), dict(self.copy.named_buffers())
        operators = self._run_both()
        self._compare(operators)
        filled = any(buffer is not buffers.get(name) for name, buffer in self.copy.named_buffers())
        if filled or _attributes(self.copy) != before:  # perhaps a cache: record calls as they are from now on
            first, operators = operators, self._run_both()
            self.fills_caches = any(_names(first[mode]) != _names(operators[mode]) for mode in (False, True))
        replaced = (name for name, buffer in self.copy.named_buffers() if buffer is not buffers.get(name))
        self.context.mutated.update(name for name in replaced if name in tensors)
        self._trace_forwards()
        while self.forwards and not self._run_traced(operators):
            continue
        for forward in self.forwards.values():
            for graph in forward.graphs.values():
                prepare_(graph)
        return Analysis(
            tensors=tensors,
            owners=self.owners,
            readers={source: tuple(paths) for source, paths in self.context.readers.items()},
            writers={source: tuple(paths) for source, paths in self.context.writers.items()},
            statistics=frozenset(self.context.statistics),
            mutated=frozenset(self.context.mutated),
            integers=self.integers,
            forwards=self.forwards,
            opaque=self.opaque,
            heads=tuple(self.context.heads),
            mixing=tuple(self.context.mixing),
            operators=operators,
            fills_caches=self.fills_caches,
            on_fake_tensors=self.fake,
        )

    def _copy_model(self) -> nn.Module:
        """A deep copy whose parameters and buffers are fake tensors (no memory, no arithmetic)."""
        memo: dict[int, Any] = {}
        if self.fake_mode is not None:
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                memo[id(tensor)] = self.fake_mode.from_tensor(tensor, static_shapes=True)
        return copy_model(self.model, memo)

    def _type_tensors(self) -> dict[str, tuple[Type, ...]]:
        tensors: dict[str, tuple[Type, ...]] = {}
        known: dict[int, tuple[Type, ...]] = {}
        first: dict[int, str] = {}
        named = [
            *self.copy.named_parameters(remove_duplicate=False),
            *self.copy.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            if id(tensor) not in known:
                dims = tuple(_own_dim(tensor, name, dim) for dim in range(tensor.dim()))
                known[id(tensor)] = dims
                self.context.set_dims(tensor, dims, weight=True)
                self.context.name(tensor, name)
            tensors[name] = known[id(tensor)]
            self.owners[name] = first.setdefault(id(tensor), name)
        return tensors

    # -- running -----------------------------------------------------------------------------------

    def _run_both(self) -> dict[bool, tuple[OpRecord, ...]]:
        """One forward in each training mode; what each module was called with and gave is kept in ``self.seen``."""
        self.seen = {training: self._run_once(training, {}) for training in (False, True)}
        return {training: tuple(mode.records) for training, mode in self.seen.items()}

    def _compare(self, operators: Mapping[bool, tuple[OpRecord, ...]]) -> None:
        """Forwards may take fake tensors for a trace, and leave out what they ask of real ones.

        Inside leaves, nothing is recorded; ``prim`` operators are questions that only fake tensors pass on.
        """
        if not self.fake or self.observed is None or any(lookup_leaf(module) for module in self.model.modules()):
            return
        for training, records in operators.items():
            names = [name for name in _names(records) if not name.startswith("prim")]
            if names != [name for name in self.observed.operators[training] if not name.startswith("prim")]:
                raise _GoesAnotherWay

    def _run_once(self, training: bool, replaced: Mapping[str, Callable[..., Any]]) -> recorder.RuleMode:
        """One forward under the rules; forwards named in ``replaced`` are run from their graphs."""
        mode = recorder.RuleMode(self.context, self.integers, self.attributes)
        with ExitStack() as stack:
            stack.enter_context(_watched(self.copy, mode, training, replaced))
            stack.enter_context(neutral(fast_paths=False))
            stack.enter_context(quiet())
            stack.enter_context(self.fake_mode or nullcontext())
            args, kwargs = pytree.tree_map_only(Tensor, self._as_input, self.inputs)
            stack.enter_context(mode)
            try:
                output = self.copy(*args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                raise
            except Exception as error:
                if replaced:
                    raise _TraceFailed(mode.running, error) from error
                raise TraceError(_failure(mode.running, training, error)) from error
        self._pin_outputs(output)
        return mode

    def _as_input(self, tensor: Tensor) -> Tensor:
        if self.fake_mode is not None:
            tensor = self.fake_mode.from_tensor(tensor, static_shapes=True)
        else:
            tensor = tensor.clone()
        reason = Reason(channels.OF_INPUT)
        self.context.set_dims(tensor, [Fixed(int(n), reason) for n in tensor.shape], weight=False)
        return tensor

    def _pin_outputs(self, output: Any) -> None:
        for tensor in output_tensors(output):
            for dim in self.context.dims(tensor):
                channels.pin(dim, Reason("it is a dimension of the model's output"))

    # -- traced forwards ---------------------------------------------------------------------------

    def _trace_forwards(self) -> None:
        traces: dict[str, dict[bool, ForwardTrace]] = {}
        used = {path: names_used(module) for path, module in self.copy.named_modules() if is_traced(module)}
        for training in (False, True):
            with neutral(fast_paths=False), quiet(), mode_of(self.copy, training), self.fake_mode or nullcontext():
                for path, names in used.items():
                    if may_carry_sizes(names):
                        call = self.seen[training].calls.get(path)
                        traces.setdefault(path, {})[training] = trace(self.copy.get_submodule(path), call)
        for path, found in traces.items():
            graphs = {training: each.graph for training, each in found.items() if each.graph is not None}
            if len(graphs) < 2:
                self.opaque[path] = next(each.failure for each in found.values() if each.graph is None)
            elif any(carries_sizes(graph) for graph in graphs.values()):
                self.forwards[path] = TracedForward(graphs, _constants(self.copy.get_submodule(path), used[path]))

    def _run_traced(self, operators: Mapping[bool, tuple[OpRecord, ...]]) -> bool:
        """Runs the graphs in place of their forwards, for the types of their nodes.

        A graph is believed only if it issues the operators that the forward itself issues. Returns False when one was
        dropped, so that the others are run again without it.
        """
        for training in (False, True):
            replaced = {
                path: recorder.interpreted(self.copy.get_submodule(path), forward.graphs[training])
                for path, forward in self.forwards.items()
            }
            try:
                mode = self._run_once(training, replaced)
            except _TraceFailed as failed:
                path = failed.path if failed.path in self.forwards else self._enclosing(failed.path)
                self._drop(path, f"its traced graph does not run: {first_line(failed.error)}")
                return False
            wrong = _modules_that_differ(operators[training], mode.records)
            expected = self.seen[training].results
            wrong |= {path for path in self.forwards if mode.results.get(path) != expected.get(path)}
            if dropped := [path for path in self.forwards if path in wrong]:
                for path in dropped:
                    self._drop(path, "its traced graph issues other operators than its forward")
                return False
        return True

    def _enclosing(self, path: str) -> str:
        while path and path not in self.forwards:
            path = path.rpartition(".")[0]
        return path if path in self.forwards else next(iter(self.forwards))

    def _drop(self, path: str, why: str) -> None:
        del self.forwards[path]
        self.opaque[path] = why


def _constants(module: nn.Module, names: frozenset[str]) -> dict[str, Any]:
    """Numbers, words and flags that a forward may read from its module; ``training`` has a graph for each value."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    return {name: value for name, value in plain.items() if name in names and name != "training"}


def _own_dim(tensor: Tensor, name: str, dim: int) -> Type:
    """A parameter's or buffer's dimension: a width of its own, unless its values are numbers of something."""
    size = int(tensor.shape[dim])
    if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
        return Fixed(size, Reason("its tensor holds integers, which may number channels or positions"))
    return channels.fresh(size, frozenset({(name, dim)}))


class _TraceFailed(Exception):
    def __init__(self, path: str, error: Exception) -> None:
        super().__init__(str(error))
        self.path = path
        self.error = error


def _failure(path: str, training: bool, error: Exception) -> str:
    mode = "training" if training else "evaluation"
    place = f"in module {path!r}" if path else "in its own forward"
    return (
        f"the model does not run on the example inputs in {mode} mode: {place}, {type(error).__name__}: {error}. "
        "Check the shape, dtype and device of example_inputs; a module that cannot run on fake tensors (it calls "
        "NumPy, say) needs a leaf rule with fake=, see docs/extending.md"
    )


def _names(records: tuple[OpRecord, ...]) -> list[str]:
    return [record.op for record in records]


def _modules_that_differ(a: tuple[OpRecord, ...], b: list[OpRecord]) -> set[str]:
    def by_module(records: Any) -> dict[str, list[tuple[str, Any, str]]]:
        found: dict[str, list[tuple[str, Any, str]]] = {}
        for record in records:
            found.setdefault(record.module, []).append((record.op, record.shapes, plain_arguments(record.arguments)))
        return found

    left, right = by_module(a), by_module(b)
    return {path for path in left.keys() | right.keys() if left.get(path) != right.get(path)}


# -- running a model without leaving a trace -------------------------------------------------------


@contextmanager
def _watched(
    model: nn.Module, mode: recorder.RuleMode, training: bool, replaced: Mapping[str, Callable[..., Any]]
) -> Iterator[None]:
    """Tells ``mode`` which module runs, puts in graphs for forwards, sets the training mode; undone at the end."""
    handles = recorder.follow_modules(model, mode)
    modules = {path: model.get_submodule(path) for path in replaced}
    own = {path: module.__dict__["forward"] for path, module in modules.items() if "forward" in module.__dict__}
    for path, function in replaced.items():
        modules[path].__dict__["forward"] = function(mode)
    try:
        with mode_of(model, training):
            yield
    finally:
        for path, module in modules.items():
            del module.__dict__["forward"]
            if path in own:
                module.__dict__["forward"] = own[path]
        for handle in handles:
            handle.remove()


def _attributes(model: nn.Module) -> list[dict[str, Any]]:
    """What the modules hold in plain attributes, by identity (and length): changes when a forward keeps something."""
    own = set(vars(nn.Module()))
    return [
        {k: (id(v), len(v) if isinstance(v, (dict, list, set)) else 0) for k, v in vars(module).items() if k not in own}
        for module in model.modules()
    ]
