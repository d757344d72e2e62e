"""Norms of a wider net, with statistics taken across the original's channels alone.

A norm across channels (LayerNorm, GroupNorm of one group, weight standardisation, a mean that the user's code takes)
sees the extra channels of a wider net, so that invariant 3 cannot hold for it. Under ``OriginalStatistics`` each such
operator takes its statistic across those channels that the original has, and normalises all of them by it: then the
target's outputs must come out again wherever extra-to-target weights are zero, and a wrong index map shows.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from netaug_fx.elastic import Active
from netaug_fx.passes import channels
from netaug_fx.passes.channels import Type, Var
from netaug_fx.passes.layout import layout_of, positions
from netaug_fx.passes.recorder import OpRecord, is_operand
from netaug_fx.passes.rules import bind, tensor_leaves


class DoubleThroughout(TorchFunctionMode):
    """Casts to float32 in a forward give float64, and so do factories: a net in float64 computes in nothing less."""

    def __enter__(self) -> DoubleThroughout:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self.default)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args, kwargs = pytree.tree_map_only(
            torch.dtype, lambda dtype: torch.float64 if dtype is torch.float32 else dtype, (args, kwargs or {})
        )
        return func(*args, **kwargs)


class OriginalStatistics(TorchDispatchMode):
    """Runs the operators that ``records`` names as mixing on the original's channels; all others as they are.

    An operator is known by the module that runs it, its name, and how many of its name the module ran before: a forward
    that asks for values (whether a mask is all ones) runs more operators on real tensors than it did on fake ones.

    Args:
        net: The net that is run, at whatever widths.
        active: The widths that it follows; operators that assemble its tensors are passed over.
        records: The operators of the original's forward, in order.
        widths: Width by variable.

    Raises:
        AssertionError: An operator that mixes has no known form, or one that was recorded did not run.
    """

    def __init__(
        self, net: nn.Module, active: Active, records: tuple[OpRecord, ...], widths: Mapping[Var, int]
    ) -> None:
        super().__init__()
        self.net = net
        self.active = active
        self.widths = widths
        self.path = [""]
        self.records: dict[tuple[str, Any], deque[OpRecord]] = {}
        for record in records:
            self.records.setdefault((record.module, record.func), deque()).append(record)

    def __enter__(self) -> OriginalStatistics:
        self.handles = []

        def leave(*_: Any) -> None:
            self.path.pop()

        for path, module in self.net.named_modules():
            enter = functools.partial(self._enter, path)
            self.handles.append(module.register_forward_pre_hook(enter, prepend=True))  # before hooks that compute
            self.handles.append(module.register_forward_hook(leave))
        super().__enter__()
        return self

    def _enter(self, path: str, *_: Any) -> None:
        self.path.append(path)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()
        if error[0] is None:
            left = [record.op for records in self.records.values() for record in records if self._mixes(record)]
            assert not left, f"{left[0]} was recorded, but did not run"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        waiting = self.records.get((self.path[-1], func))
        if self.active.assembling or not waiting or not tensor_leaves(out):
            return out
        record = waiting.popleft()
        return self._on_original(record, func, args, kwargs, out) if self._mixes(record) else out

    def _mixes(self, record: OpRecord) -> bool:
        return any(var in self.widths for t in record.mixes for var in channels.variables(t))

    def _on_original(self, record: OpRecord, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        operands = [leaf for leaf in pytree.tree_leaves(record.arguments, is_leaf=is_operand) if is_operand(leaf)]
        dims = {id(t): o.dims for t, o in zip(tensor_leaves((args, kwargs)), operands, strict=True)}

        def narrowed(tensor: Tensor, over: list[int]) -> Tensor:
            for index in over:
                tensor = tensor.index_select(index, self._original(dims_of[index]))
            return tensor

        form = _FORMS.get(func._schema.name.removeprefix("aten::"))
        assert form is not None, f"{func} takes a statistic across channels in a way that is not known here"
        bound = bind(func, args, kwargs, out)
        dims_of = dims[id(bound.v if hasattr(bound, "v") else bound.input)]
        of_weights = not any(channels.follows_input(dim) for dim in dims_of)
        found = form(bound, narrowed, lambda *narrow: func(*narrow, *args[len(narrow) :], **kwargs))
        if of_weights and func._schema.name in ("aten::mean", "aten::var_mean", "aten::std_mean"):
            found = _uncentred(found)
        with_strides = [old.copy_(new) for old, new in zip(tensor_leaves(out), tensor_leaves(found), strict=True)]
        return with_strides[0] if isinstance(out, Tensor) else tuple(with_strides)

    def _original(self, t: Type) -> Tensor:
        order = list(dict.fromkeys(channels.variables(t)))
        within = tuple(self.widths.get(var, var.size) for var in order)
        return positions(layout_of(t, {var: number for number, var in enumerate(order)}), None, within)


def _uncentred(found: Any) -> Any:
    """Weights standardised by hand are not centred, so that those from extra channels, which are zero, stay zero."""
    return torch.zeros_like(found) if isinstance(found, Tensor) else (found[0], torch.zeros_like(found[1]))


Narrow = Callable[[Tensor, list[int]], Tensor]
"""Takes the original's part of the operator's first argument along some dimensions."""


def _reduction(a: SimpleNamespace, narrow: Narrow, again: Callable[..., Any]) -> Any:
    rank = a.input.dim()
    dim = getattr(a, "dim", None)
    over = list(range(rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return again(narrow(a.input, [d % rank for d in over]))


def _normalised(a: SimpleNamespace, over: list[int], part: Tensor, centred: bool, eps: float) -> Tensor:
    centre = part.mean(over, keepdim=True) * centred
    power = ((part - centre) ** 2).mean(over, keepdim=True)
    return (a.input - centre) * (power + eps).rsqrt()


def _layer_norm(a: SimpleNamespace, narrow: Narrow, again: Callable[..., Any]) -> Any:
    rank = a.input.dim()
    over = list(range(rank - len(a.normalized_shape), rank))
    out = _normalised(a, over, narrow(a.input, over), True, a.eps)
    out = out if a.weight is None else out * a.weight
    return (out if a.bias is None else out + a.bias, *a.out[1:])


def _rms_norm(a: SimpleNamespace, narrow: Narrow, again: Callable[..., Any]) -> Any:
    rank = a.input.dim()
    over = list(range(rank - len(a.normalized_shape), rank))
    eps = torch.finfo(a.input.dtype).eps if a.eps is None else a.eps
    out = _normalised(a, over, narrow(a.input, over), False, eps)
    out = out if a.weight is None else out * a.weight
    return out if isinstance(a.out, Tensor) else (out, *a.out[1:])


def _one_group(a: SimpleNamespace, narrow: Narrow, again: Callable[..., Any]) -> Any:
    over = list(range(1, a.input.dim()))
    out = _normalised(a, over, narrow(a.input, over), True, a.eps)
    return (_per_channel(out, a.weight, a.bias), *a.out[1:])


def _batch_norm_of_weights(a: SimpleNamespace, narrow: Narrow, again: Callable[..., Any]) -> Any:
    """Weight standardisation; weights that are zero (from extra channels to the target) stay zero, uncentred."""
    over = [0, *range(2, a.input.dim())]
    out = _normalised(a, over, narrow(a.input, over), True, a.eps) * (a.input != 0)
    return (_per_channel(out, a.weight, a.bias), *a.out[1:])


def _per_channel(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (out.dim() - 2))
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def _weight_norm(a: SimpleNamespace, narrow: Narrow, again: Callable[..., Any]) -> Any:
    over = [index for index in range(a.v.dim()) if index != a.dim]
    norm = (narrow(a.v, over) ** 2).sum(over, keepdim=True).sqrt()
    out = a.v * (a.g / norm)
    return out if isinstance(a.out, Tensor) else (out, *a.out[1:])


_FORMS: dict[str, Callable[[SimpleNamespace, Narrow, Callable[..., Any]], Any]] = {
    **dict.fromkeys(
        ("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "sum", "amax", "amin"), _reduction
    ),
    "native_layer_norm": _layer_norm,
    **dict.fromkeys(("_fused_rms_norm", "rms_norm"), _rms_norm),
    "native_group_norm": _one_group,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), _batch_norm_of_weights),
    **dict.fromkeys(("_weight_norm_interface", "_weight_norm"), _weight_norm),
}
