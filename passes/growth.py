"""Growth: how much of a model can grow, and what its forward costs at any widths, without running anything.

In: an ``Analysis`` and widths by variable. Out: shares; multiply-adds of convolutions, linear layers and matrix
products, from the recorded operators' types and torch's own formulas (``torch.utils.flop_counter``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Type, Var
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.plan import Plan
from netaug_fx.passes.recorder import OpRecord, is_operand


def predicted_macs(analysis: Analysis, widths: Mapping[Var, int]) -> int:
    """Multiply-adds of one forward in evaluation mode at the given widths, for the whole batch of the example."""
    return sum(_macs(record, widths) for record in _counted(analysis))


def growing_share_of_weights(model: nn.Module, analysis: Analysis, plan: Plan) -> float:
    """Share of the elements of weight matrices that lie in a tensor with a dimension that grows, from 0 to 1."""
    weights = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    growing = sum(count for name, count in weights.items() if any(map(plan.grows, analysis.tensors[name])))
    return growing / sum(weights.values()) if weights else 0.0


def growing_share_of_macs(analysis: Analysis, plan: Plan) -> float:
    """Share of the multiply-adds that belong to operators which cost more when the plan's groups grow, from 0 to 1.

    Those of attention between two activations count where their heads, or what they contract, grow.
    """
    widest = {var: plan.widest[number] for var, number in plan.numbers.items()}
    total = growing = 0
    for record in _counted(analysis):
        base = _macs(record, {})
        total += base
        growing += base if _macs(record, widest) > base else 0
    return growing / total if total else 0.0


def _counted(analysis: Analysis) -> Iterator[OpRecord]:
    return (record for record in analysis.operators[False] if record.func.overloadpacket in flop_registry)


def _macs(record: OpRecord, widths: Mapping[Var, int]) -> int:
    def shape(dims: tuple[Type, ...]) -> list[int]:
        return [channels.size_at(dim, widths) for dim in dims]

    args, kwargs = pytree.tree_map(
        lambda leaf: shape(leaf.dims) if is_operand(leaf) else leaf, record.arguments, is_leaf=is_operand
    )
    formula: Any = flop_registry[record.func.overloadpacket]
    return int(formula(*args, **kwargs, out_val=shape(record.dims[0]))) // 2
