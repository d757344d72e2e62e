"""Resize: a plain model of other widths, narrower or wider, made of one that was analysed.

In: the model, its ``Analysis`` and a new size for some of its width variables. Out: a copy of the same classes with
smaller or larger layers, in which the channels that both have keep their values. Where a forward holds widths in its
text, the copy's module gets a class of its own, whose forward is the traced one with the new numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from netaug_fx.assembly import in_format_of
from netaug_fx.elastic import MADE_BY, STATE, ForwardSource, integer_attributes
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Type, Var
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.layout import Layout, Widths, layout_of, positions, shape
from netaug_fx.passes.rewrite import Rewritten, needs_rewriting, rewrite
from netaug_fx.passes.running import mode_of


@dataclass(frozen=True)
class Resized:
    """A tensor that takes another shape.

    Attributes:
        old: The tensor as it was.
        layouts: Of its dimensions; groups are numbered.
        contracted: Dimensions that the forward sums over.
        before, after: Widths of all groups, by number.
        is_buffer: It is no parameter.
    """

    old: Tensor
    layouts: tuple[Layout, ...]
    contracted: frozenset[int]
    before: Widths
    after: Widths
    is_buffer: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The new shape."""
        return shape(self.layouts, self.after)


Fill = Callable[[Resized], Tensor]
"""Makes a tensor of the new shape."""


def resize(model: nn.Module, analysis: Analysis, sizes: Mapping[Var, int], fill: Fill | None = None) -> nn.Module:
    """A plain model in which the given widths have other sizes.

    Args:
        model: The model that was analysed; it is not changed.
        analysis: What ``infer`` found.
        sizes: New size of each variable that changes; at least 1.
        fill: Makes the tensors that change; by default ``first_channels`` with zeros.

    Returns:
        A copy of the model's class.
    """
    return _Resizing(model, analysis, sizes, fill or first_channels(_zeros)).run()


def first_channels(fresh: Callable[[Resized], Tensor]) -> Fill:
    """Keeps the first channels of each width, as many as both models have; all others are ``fresh``."""

    def fill(resized: Resized) -> Tensor:
        common = tuple(map(min, resized.before, resized.after))
        kept, new = resized.old, fresh(resized)
        for dim, layout in enumerate(resized.layouts):
            kept = kept.index_select(dim, positions(layout, common, resized.before).to(kept.device))
        places = [positions(layout, common, resized.after).to(new.device) for layout in resized.layouts]
        new[torch.meshgrid(*places, indexing="ij")] = kept.to(new)
        return new

    return fill


def _zeros(resized: Resized) -> Tensor:
    return resized.old.new_zeros(resized.shape)


class _Resizing:
    def __init__(self, model: nn.Module, analysis: Analysis, sizes: Mapping[Var, int], fill: Fill) -> None:
        self.resized = copy_model(model)
        self.analysis = analysis
        self.sizes = dict(sizes)
        self.fill = fill
        self.numbers = {var: number for number, var in enumerate(sizes)}
        self.made: dict[int, Tensor] = {}  # by the id of the tensor it takes the place of: tied ones share

    def run(self) -> nn.Module:
        modules = dict(self.resized.named_modules())
        for path, module in modules.items():
            self._resize_(path, module._parameters)
            self._resize_(path, module._buffers)
            self._set_integers_(path, module)
        with mode_of(self.resized, False):  # to compute a weight in training mode may change its buffers
            for module in modules.values():
                _describe_(module)
        for path, module in modules.items():
            self._rewrite_(path, module)
        return self.resized

    # -- tensors -----------------------------------------------------------------------------------

    def _resize_(self, path: str, store: dict[str, Any]) -> None:
        for name, old in store.items():
            full = f"{path}.{name}" if path else name
            dims = self.analysis.tensors.get(full)
            if old is None or dims is None or not self._changes(dims):
                continue
            if id(old) not in self.made:
                self.made[id(old)] = self._tensor(old, full, dims)
            store[name] = self.made[id(old)]

    def _changes(self, dims: tuple[Type, ...]) -> bool:
        return any(var in self.sizes for dim in dims for var in channels.variables(dim))

    def _tensor(self, old: Tensor, name: str, dims: tuple[Type, ...]) -> Tensor:
        owner = self.analysis.owners[name]
        contracted = frozenset(dim for dim in range(len(dims)) if (owner, dim) in self.analysis.readers)
        layouts = tuple(layout_of(dim, self.numbers) for dim in dims)
        before, after = tuple(var.size for var in self.sizes), tuple(self.sizes.values())
        with torch.no_grad():
            is_buffer = not isinstance(old, nn.Parameter)
            new = self.fill(Resized(old.detach(), layouts, contracted, before, after, is_buffer)).to(old)
            new = in_format_of(old, new)
        return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new

    # -- integers and forwards ---------------------------------------------------------------------

    def _set_integers_(self, path: str, module: nn.Module) -> None:
        noted = self.analysis.integers.get(path, {})
        for name in integer_attributes(module):
            if name in noted:
                new: Any = channels.size_at(noted[name], self.sizes)
            elif f"{name}.0" in noted:
                count = len(module.__dict__[name])
                new = tuple(channels.size_at(noted[f"{name}.{i}"], self.sizes) for i in range(count))
            else:
                continue
            if isinstance(module, nn.GroupNorm):  # groups keep their size; without weights nothing else would tell
                module.num_channels = module.num_channels // module.num_groups * new
            module.__dict__[name] = new

    def _rewrite_(self, path: str, module: nn.Module) -> None:
        forward = self.analysis.forwards.get(path)
        if forward is None:
            return
        followed = frozenset(integer_attributes(module))
        if not any(needs_rewriting(graph, self.sizes, followed) for graph in forward.graphs.values()):
            return
        rewritten = {mode: rewrite(graph, self.sizes) for mode, graph in forward.graphs.items()}
        sources = {}
        for mode, found in rewritten.items():
            graph = forward.graphs[mode] if found is None else _with_numbers(found, self.sizes)
            code = graph.python_code("self")
            sources[mode] = ForwardSource.of(code.src, code.globals)
        module.__dict__.pop("forward", None)
        module.__class__ = forward_class(type(module), sources[False], sources[True])


def _with_numbers(found: Rewritten, sizes: Mapping[Var, int]) -> fx.Graph:
    """The graph with a number wherever it asks for the size of a type."""
    for node in list(found.graph.nodes):
        if node.op == "call_method" and getattr(node.args[0], "target", None) == STATE:
            _put_number_(node, channels.size_at(found.sizes[node.args[1]], sizes))
    return found.graph


def _put_number_(node: fx.Node, number: int) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: number if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: number if n is node else n)
    (state,) = node.all_input_nodes
    node.graph.erase_node(node)
    node.graph.erase_node(state)


# -- what modules of torch.nn say of themselves ----------------------------------------------------


def _describe_(module: nn.Module) -> None:
    """Brings the integers that a layer shows, and that others may read, in line with its tensors."""
    for cls, described in _DESCRIBED.items():
        if isinstance(module, cls):
            module.__dict__.update(described(module))


def _convolution(module: Any) -> dict[str, int]:
    outer, inner = module.weight.shape[:2]
    if module.transposed:
        return {"in_channels": outer, "out_channels": inner * module.groups}
    return {"in_channels": inner * module.groups, "out_channels": outer}


def _attention(module: Any) -> dict[str, int | None]:
    width = module.out_proj.weight.shape[0]
    sources = {"kdim": width, "vdim": width}
    if not module._qkv_same_embed_dim:
        sources = {"kdim": module.k_proj_weight.shape[1], "vdim": module.v_proj_weight.shape[1]}
    return {"embed_dim": width, "head_dim": width // module.num_heads, **sources}


def _first_size(*names: str) -> Callable[[Any], Any]:
    def find(module: Any) -> Any:
        return next((t.shape[0] for name in names if (t := getattr(module, name, None)) is not None), None)

    return find


_norm_size = _first_size("weight", "running_mean")
_DESCRIBED: dict[type[nn.Module], Callable[[Any], Mapping[str, Any]]] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: lambda m: {"in_features": m.weight.shape[1], "out_features": m.weight.shape[0]},
    nn.Embedding: lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    nn.PReLU: lambda m: {"num_parameters": m.weight.shape[0]},
    nn.MultiheadAttention: _attention,
    nn.LayerNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.RMSNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.GroupNorm: lambda m: {"num_channels": _norm_size(m) or m.num_channels},
    nn.modules.batchnorm._NormBase: lambda m: {"num_features": _norm_size(m) or m.num_features},
}


# -- classes with a forward of their own -----------------------------------------------------------


def forward_class(base: type[nn.Module], evaluation: ForwardSource, training: ForwardSource) -> type[nn.Module]:
    """A subclass of ``base``, of its name, that runs other forwards; its instances can be copied and pickled.

    The same one for the same forwards: copies are of one class.
    """
    known = _forward_classes.setdefault((base, evaluation.code, training.code), [])
    for cls in known:
        _, (_, *sources) = vars(cls)[MADE_BY]
        if sources[0].is_like(evaluation) and sources[1].is_like(training):
            return cls
    known.append(_make_forward_class(base, evaluation, training))
    return known[-1]


_forward_classes: dict[tuple[type[nn.Module], str, str], list[type[nn.Module]]] = {}


def _make_forward_class(base: type[nn.Module], evaluation: ForwardSource, training: ForwardSource) -> type[nn.Module]:
    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (training if self.training else evaluation).function(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced: tuple[Any, ...] = super(created, self).__reduce_ex__(2)  # type: ignore[assignment]
        _, _, state, *rest = reduced
        return (_rebuild, (base, evaluation, training), state, *rest)

    names: dict[str, Any] = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    names[MADE_BY] = (forward_class, (base, evaluation, training))
    metaclass: Any = type(base)
    created: type[nn.Module] = metaclass(base.__name__, (base,), {"forward": forward, "__reduce_ex__": reduce, **names})
    return created


def _rebuild(base: type[nn.Module], evaluation: ForwardSource, training: ForwardSource) -> nn.Module:
    cls = forward_class(base, evaluation, training)
    return cls.__new__(cls)
