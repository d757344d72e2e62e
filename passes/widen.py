"""Widen: a copy of the model whose modules are swapped for their elastic counterparts.

In: the model, its ``Analysis`` and a ``Plan``. Out: the supernet, not yet checked. The original's parameters keep their
name, shape and identity in the copy; what each dimension gains lives in extra blocks beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.assembly import BUFFER, MUTATED, PARAMETER, SHARED, STATISTIC, ElasticTensor, in_format_of
from netaug_fx.elastic import STATE, Active, ForwardSource, ModuleState, elastic_class, integer_attributes
from netaug_fx.passes.channels import Type
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.drawing import draw_beside_
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.layout import Layout, groups_in, layout_of, shape, size
from netaug_fx.passes.plan import Plan
from netaug_fx.passes.rewrite import needs_rewriting, rewrite


def widen(
    model: nn.Module,
    analysis: Analysis,
    plan: Plan,
    *,
    seed: int = 0,
    mixin: type | None = None,
    shared_buffers: bool = False,
) -> nn.Module:
    """Builds the supernet of ``model``; the model itself is not changed.

    Args:
        model: The model that was analysed, or a ``resize``d one, whose widths are then those of the plan's groups.
        analysis: What ``infer`` found.
        plan: Which groups grow.
        seed: Seeds the extra weights.
        mixin: A class to add behind the root's class (``netaug_fx.supernet.Supernet``).
        shared_buffers: What forwards write into (norm statistics) grows as weights do, and is not the target's alone.

    Returns:
        A deep copy, an instance of the model's class, whose modules follow the widths of one shared ``Active``.
    """
    return _Widening(model, analysis, plan, seed, mixin, shared_buffers).run()


class _Widening:
    def __init__(
        self, model: nn.Module, analysis: Analysis, plan: Plan, seed: int, mixin: type | None, shared_buffers: bool
    ) -> None:
        self.supernet = copy_model(model)
        self.analysis = analysis
        self.plan = plan
        self.mixin = mixin
        self.shared_buffers = shared_buffers
        self.active = Active(plan.widest)
        self.generator = torch.Generator().manual_seed(seed)
        self.blocks: dict[int, list[Tensor]] = {}  # extra blocks by the id of the tensor they widen: tied ones share

    def run(self) -> nn.Module:
        """Swaps every module that holds, reads or rewrites a width."""
        for path, module in self.supernet.named_modules():
            self._swap_(path, module)
        return self.supernet

    def _swap_(self, path: str, module: nn.Module) -> None:
        tensors = {tensor.name: tensor for tensor in self._elastic_tensors(path, module)}
        integers = self._integers(path, module)
        sizes, forwards = self._rewritten(path, frozenset(integers))
        mixin = self.mixin if path == "" else None
        if not (tensors or integers or forwards or mixin):
            return
        for tensor in tensors.values():
            self._add_blocks(module, tensor)
        follows = set(integers)
        keeps_statistics = any(tensor.kind == STATISTIC for tensor in tensors.values())
        if keeps_statistics and "track_running_stats" in module.__dict__:
            follows.add("track_running_stats")
        own_forward = module.__dict__.get("forward")
        if forwards:
            module.__dict__.pop("forward", None)
        constants = self._constants(path, module) if forwards else {}
        state = ModuleState(path, self.active, tensors, integers, sizes, forwards, constants, own_forward)
        module.__dict__[STATE] = state
        module.__class__ = elastic_class(type(module), frozenset(tensors), frozenset(follows), bool(forwards), mixin)

    def _constants(self, path: str, module: nn.Module) -> dict[str, Any]:
        """Attributes that the rewritten forward holds; a ``resize``d layer tells other sizes than the analysed one."""
        noted = self.analysis.forwards[path].constants
        return {name: module.__dict__.get(name, value) for name, value in noted.items()}

    def _layout(self, t: Type) -> Layout:
        return layout_of(t, self.plan.numbers, self.plan.base)

    # -- tensors -----------------------------------------------------------------------------------

    def _elastic_tensors(self, path: str, module: nn.Module) -> Iterator[ElasticTensor]:
        prefix = f"{path}." if path else ""
        keeps_statistics = any(prefix + name in self.analysis.statistics for name in module._buffers)
        for name in [*module._parameters, *module._buffers]:
            full = prefix + name
            if full not in self.analysis.tensors:
                continue
            layouts = tuple(self._layout(t) for t in self.analysis.tensors[full])
            dims = tuple(d for d, layout in enumerate(layouts) if groups_in(layout))
            mutated = full in self.analysis.mutated
            statistic = full in self.analysis.statistics or (keeps_statistics and mutated)
            if statistic and not self.shared_buffers:
                yield ElasticTensor(name, full, STATISTIC, layouts, (), (), ())
            elif dims or mutated or statistic:
                written = SHARED if self.shared_buffers else MUTATED
                kind = PARAMETER if name in module._parameters else written if mutated or statistic else BUFFER
                owner = self.analysis.owners[full]
                contracted = tuple(d for d in dims if (owner, d) in self.analysis.readers)
                extras = tuple(f"{name}_netaug{d}" for d in dims)
                yield ElasticTensor(name, full, kind, layouts, dims, extras, contracted)

    def _add_blocks(self, module: nn.Module, tensor: ElasticTensor) -> None:
        base = getattr(module, tensor.name)
        blocks = self.blocks.setdefault(id(base), [])
        for position, (dim, name) in enumerate(zip(tensor.dims, tensor.extras, strict=True)):
            if len(blocks) <= position:
                block = self._block(base, tensor, dim)
                is_parameter = tensor.kind == PARAMETER
                blocks.append(nn.Parameter(block, requires_grad=base.requires_grad) if is_parameter else block)
            if tensor.kind == PARAMETER:
                module.register_parameter(name, blocks[position])  # type: ignore[arg-type]
            else:
                module.register_buffer(name, blocks[position], tensor.name not in module._non_persistent_buffers_set)

    def _block(self, base: Tensor, tensor: ElasticTensor, dim: int) -> Tensor:
        """What a dimension gains: of the original's size on earlier elastic dimensions, of the widest on later ones."""
        widest = shape(tensor.layouts, self.plan.widest)
        block_shape = [
            widest[d] - base.shape[d] if d == dim else base.shape[d] if d < dim else widest[d]
            for d in range(base.dim())
        ]
        if not base.dtype.is_floating_point and not base.dtype.is_complex:
            return torch.zeros(block_shape, dtype=base.dtype, device=base.device)
        block = torch.empty(block_shape, dtype=torch.float32)
        contracted = tensor.contracted
        fan_in = math.prod(size(tensor.layouts[d], self.plan.widest) / base.shape[d] for d in contracted)
        draw_beside_(block, base, fan_in if contracted else None, self.generator)
        return in_format_of(base, block.to(dtype=base.dtype, device=base.device))

    # -- integers and forwards ---------------------------------------------------------------------

    def _integers(self, path: str, module: nn.Module) -> dict[str, Layout | tuple[Layout, ...]]:
        noted = self.analysis.integers.get(path, {})
        found: dict[str, Layout | tuple[Layout, ...]] = {}
        for name in integer_attributes(module):
            if name in noted:
                found[name] = self._layout(noted[name])
            elif f"{name}.0" in noted:
                count = len(module.__dict__[name])
                found[name] = tuple(self._layout(noted[f"{name}.{index}"]) for index in range(count))
        return {name: layout for name, layout in found.items() if _moves(layout)}

    def _rewritten(self, path: str, followed: frozenset[str]) -> tuple[tuple[Layout, ...], dict[bool, ForwardSource]]:
        forward = self.analysis.forwards.get(path)
        if forward is None:
            return (), {}
        if not any(needs_rewriting(graph, self.plan.numbers, followed) for graph in forward.graphs.values()):
            return (), {}
        rewritten = {mode: rewrite(graph, self.plan.numbers) for mode, graph in forward.graphs.items()}
        sizes: list[Layout] = []
        forwards: dict[bool, ForwardSource] = {}
        for mode, found in rewritten.items():
            graph = forward.graphs[mode] if found is None else found.graph
            offset = len(sizes)
            if found is not None:
                sizes.extend(self._layout(t) for t in found.sizes)
                _renumber(graph, offset)
            code = graph.python_code("self")
            forwards[mode] = ForwardSource.of(code.src, code.globals)
        return tuple(sizes), forwards


def _renumber(graph: Any, offset: int) -> None:
    """The two training modes of a module share one list of sizes."""
    for node in graph.nodes:
        state = node.args[0] if node.args else None
        if node.op == "call_method" and node.target == "size" and getattr(state, "target", None) == STATE:
            node.args = (state, node.args[1] + offset)


def _moves(layout: Layout | tuple[Layout, ...]) -> bool:
    items = layout if isinstance(layout, tuple) else (layout,)
    return any(groups_in(item) for item in items)
