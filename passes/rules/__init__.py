"""One small function per family of operators, stating the law it puts on channel types."""

from netaug_fx.passes.rules import contraction, elementwise, factory, indexing, norms, reduction, shape, spatial
from netaug_fx.passes.rules.registry import RULES, bind, lookup, rule, tensors_in

__all__ = [
    "RULES",
    "bind",
    "contraction",
    "elementwise",
    "factory",
    "indexing",
    "lookup",
    "norms",
    "reduction",
    "rule",
    "shape",
    "spatial",
    "tensors_in",
]
