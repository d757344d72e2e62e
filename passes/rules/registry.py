"""The table of rules: ATen operator -> function from argument types to result types."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from netaug_fx.errors import InputError
from netaug_fx.passes.context import Context, Dims

RuleResult = Dims | list[Dims] | None
Rule = Callable[[Context, Any], RuleResult]

ModuleRule = Callable[[Context, Any, tuple[Any, ...], dict[str, Any], Any], None]

RULES: dict[str, Rule] = {}
MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}


def rule(*ops: str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Registers a rule for ATen operators (``"mm"``), or a custom one (``"mylib::fused_scale"``), all overloads alike.

    The rule gets the context and the operator's arguments by their schema names, plus its result as ``out``. It
    unifies or pins what must hold and returns the result's types: a list per dimension for one tensor, a list of such
    lists for several, None for results without tensors. An in-place variant (``add_``) uses the rule of ``add``.

    Raises:
        InputError: an operator has a rule already and ``replace`` is not given.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            name = op if "::" in op else f"aten::{op}"
            if name in RULES and not replace:
                raise InputError(f"there is a rule for {name} already; pass replace=True to put yours in its place")
            RULES[name] = function
        return function

    return register


def module_rule(*classes: type[nn.Module]) -> Callable[[ModuleRule], ModuleRule]:
    """Registers a rule for module classes whose Python ties widths that their operators do not tie.

    The rule gets the context, the module, its positional and keyword arguments and its output, after the module ran.
    """

    def register(function: ModuleRule) -> ModuleRule:
        for cls in classes:
            MODULE_RULES[cls] = function
        return function

    return register


def lookup_module(module: nn.Module) -> ModuleRule | None:
    """The rule of a module's class or of its nearest base class."""
    return next((MODULE_RULES[cls] for cls in type(module).__mro__ if cls in MODULE_RULES), None)


def lookup(func: OpOverload) -> Rule | None:
    """The rule for an operator: its own, its out-of-place form's, or the elementwise one for pointwise operators."""
    name = func._schema.name
    found = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if found is None and torch.Tag.pointwise in func.tags:
        return RULES["elementwise"]
    return found


def bind(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> SimpleNamespace:
    """The call's arguments by schema name, defaults filled in; ``self`` is called ``input``."""
    named: dict[str, Any] = {}
    for index, argument in enumerate(func._schema.arguments):
        name = "input" if argument.name == "self" else argument.name
        if index < len(args) and not argument.kwarg_only:
            named[name] = args[index]
        elif argument.name in kwargs:
            named[name] = kwargs[argument.name]
        else:
            named[name] = argument.default_value if argument.has_default_value() else None
    return SimpleNamespace(**named, out=out)


def tensor_leaves(tree: Any) -> list[Tensor]:
    """All tensors of a (nested) argument or result, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
