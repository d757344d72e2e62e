"""One small function per family of operators, stating the law it puts on channel types."""

from netaug_fx.passes.rules import (
    contraction,
    elementwise,
    factory,
    indexing,
    modules,
    norms,
    reduction,
    shape,
    spatial,
)
from netaug_fx.passes.rules.registry import (
    MODULE_RULES,
    RULES,
    ModuleRule,
    bind,
    lookup,
    lookup_module,
    module_rule,
    rule,
    tensor_leaves,
)

__all__ = [
    "MODULE_RULES",
    "RULES",
    "ModuleRule",
    "bind",
    "contraction",
    "elementwise",
    "factory",
    "indexing",
    "lookup",
    "lookup_module",
    "module_rule",
    "modules",
    "norms",
    "reduction",
    "rule",
    "shape",
    "spatial",
    "tensor_leaves",
]
