"""The table of rules: ATen operator -> function from argument types to result types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

LeafTypes = Callable[[Context, Any, tuple[Any, ...], dict[str, Any], Any], RuleResult]


@dataclass(frozen=True)
class LeafRule:
    """What is known of a module class that is not looked into.

    Attributes:
        cls: The class that the rule was registered for.
        types: Gives the types of the module's output.
        fake: Gives an output of the right shapes without computing it; None if the forward runs on fake tensors.
    """

    cls: type[nn.Module]
    types: LeafTypes
    fake: Callable[..., Any] | None = None


RULES: dict[str, Rule] = {}
MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}
LEAF_RULES: dict[type[nn.Module], LeafRule] = {}


def rule(*ops: str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Registers a rule for ATen operators (``"mm"``), or a custom one (``"mylib::fused_scale"``), all overloads alike.

    The rule gets the context and the operator's arguments by their schema names, plus its result as ``out``. It
    unifies or pins what must hold and returns the result's types: a list per dimension for one tensor, a list of such
    lists for several, None for results without tensors. An in-place variant (``add_``) uses the rule of ``add``.

    Raises:
        InputError: a name is no operator's name, there are none, the rule is no function, or an operator has a rule
            already and ``replace`` is not given.
    """
    names = [_operator_name(op) for op in ops]
    if not names:
        raise InputError('rule needs the names of operators, as in @rule("mylib::fused_scale")')

    def register(function: Rule) -> Rule:
        _must_be_callable("rule", function)
        if taken := [name for name in names if name in RULES and not replace]:
            raise InputError(f"there is a rule for {taken[0]} already; pass replace=True to put yours in its place")
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def module_rule(*classes: type[nn.Module], replace: bool = False) -> Callable[[ModuleRule], ModuleRule]:
    """Registers a rule for module classes whose Python ties widths that their operators do not tie.

    The rule gets the context, the module, its positional and keyword arguments and its output, after the module ran.

    Raises:
        InputError: an argument is no module class, there are none, the rule is no function, or a class has a rule
            already and ``replace`` is not given.
    """
    _must_be_module_classes("module_rule", classes)

    def register(function: ModuleRule) -> ModuleRule:
        _must_be_callable("module_rule", function)
        _must_be_free("module rule", classes, MODULE_RULES, replace)
        MODULE_RULES.update(dict.fromkeys(classes, function))
        return function

    return register


def leaf_rule(
    *classes: type[nn.Module], fake: Callable[..., Any] | None = None, replace: bool = False
) -> Callable[[LeafTypes], LeafTypes]:
    """Registers a rule in place of looking into modules of these classes: what runs inside is not watched.

    The rule gets what a module rule gets, and returns the types of the module's output as a rule for an operator does.
    Its claims about values are believed; shapes are checked.

    Args:
        classes: Module classes; their subclasses are leaves too.
        fake: Where the forward cannot run on fake tensors (it calls NumPy, say): a function from the module and the
            forward's arguments to an output of the right shape and dtype, such as ``lambda self, x: x.new_empty(...)``.
            Sizes have to be read from the arguments and the module's tensors, which are wider in augmented passes.
        replace: Put the rule in the place of one that is there.

    Raises:
        InputError: an argument is no module class, there are none, the rule or ``fake`` is no function, or a class has
            a rule already and ``replace`` is not given.
    """
    _must_be_module_classes("leaf_rule", classes)
    if fake is not None:
        _must_be_callable("leaf_rule(fake=...)", fake)

    def register(function: LeafTypes) -> LeafTypes:
        _must_be_callable("leaf_rule", function)
        _must_be_free("leaf rule", classes, LEAF_RULES, replace)
        LEAF_RULES.update({cls: LeafRule(cls, function, fake) for cls in classes})
        return function

    return register


def _operator_name(op: Any) -> str:
    if not isinstance(op, str):
        raise InputError(f'rule needs the names of operators, as in @rule("mylib::fused_scale"), not {op!r}')
    namespace, _, name = op.rpartition("::")
    if "." in name or not name.isidentifier():
        raise InputError(f"{op!r} is no operator's name: write it as 'mylib::fused_scale', without an overload")
    return f"{namespace or 'aten'}::{name}"


def _must_be_callable(name: str, function: Any) -> None:
    if not callable(function) or isinstance(function, type):
        raise InputError(f"{name} must be given a function, not {function!r}")


def _must_be_module_classes(name: str, classes: tuple[Any, ...]) -> None:
    wrong = [cls for cls in classes if not (isinstance(cls, type) and issubclass(cls, nn.Module))]
    if wrong or not classes:
        found = f", not {wrong[0]!r}" if wrong else ""
        raise InputError(f"{name} needs classes of modules, as in @{name}(MyModule){found}")


def _must_be_free(what: str, classes: tuple[type[nn.Module], ...], table: Any, replace: bool) -> None:
    if taken := [cls.__qualname__ for cls in classes if cls in table and not replace]:
        raise InputError(f"there is a {what} for {taken[0]} already; pass replace=True to put yours in its place")


def lookup_module(module: nn.Module) -> ModuleRule | None:
    """The rule of a module's class or of its nearest base class."""
    return next((MODULE_RULES[cls] for cls in type(module).__mro__ if cls in MODULE_RULES), None)


def lookup_leaf(module: nn.Module) -> LeafRule | None:
    """The leaf rule of a module's class or of its nearest base class."""
    return next((LEAF_RULES[cls] for cls in type(module).__mro__ if cls in LEAF_RULES), None)


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
    return SimpleNamespace(**{**named, "out": out})  # where the caller gave a tensor to write to, it is the result


def tensor_leaves(tree: Any) -> list[Tensor]:
    """All tensors of a (nested) argument or result, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
