"""Reads the names that a forward's code uses, to leave alone the forwards that cannot concern the compiler.

In: a module. Out: every name in its forward's bytecode and in the methods and functions it reaches. Tracing every
forward of a deep net is most of the time of ``augment``; most forwards only call their children.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

SLICE = "[:]"
ASSIGNS = ".="
"""Stand in for what has no name of its own: a slice, and an assignment to an attribute."""

_ASSIGNING = frozenset(("setattr", "delattr", "__setattr__", "__delattr__", "__dict__", "vars"))

_known: dict[CodeType, frozenset[str]] = {}


def names_used(module: nn.Module) -> frozenset[str]:
    """All names that ``module.forward`` and what it calls in Python use, ``SLICE`` and ``ASSIGNS``."""
    found: set[str] = set()
    seen: set[CodeType] = set()
    stack: list[Callable[..., Any]] = [module.forward]
    while stack:
        function = inspect.unwrap(stack.pop())
        code = getattr(function, "__code__", None)
        if not isinstance(code, CodeType) or code in seen:
            continue
        seen.add(code)
        names = _names_in(code)
        found |= names
        stack.extend(_reached(names, module, function))
    return frozenset(found)


def _names_in(code: CodeType) -> frozenset[str]:
    if code not in _known:
        names = {*code.co_names}
        for step in dis.get_instructions(code):
            if step.opname in ("BUILD_SLICE", "BINARY_SLICE", "STORE_SLICE"):
                names.add(SLICE)
            elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
                names.add(ASSIGNS)
        if not _ASSIGNING.isdisjoint(names):
            names.add(ASSIGNS)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                names |= _names_in(constant)
            elif isinstance(constant, slice) or (
                isinstance(constant, tuple) and any(isinstance(item, slice) for item in constant)
            ):
                names.add(SLICE)
        _known[code] = frozenset(names)
    return _known[code]


def _reached(names: frozenset[str], module: nn.Module, function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Python functions that the names stand for: methods and attributes of the module, globals, attributes of global
    modules; and whatever the function closes over."""
    namespace: dict[str, Any] = getattr(function, "__globals__", {})
    modules = [value for name in names if isinstance(value := namespace.get(name), ModuleType)]
    holders = [each for each in modules if each.__name__.partition(".")[0] != "torch"]
    found = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if is_filled(cell)]
    for name in names:
        found += [getattr(type(module), name, None), module.__dict__.get(name), namespace.get(name)]
        found += [getattr(holder, name, None) for holder in holders]
    for value in found:
        if isinstance(value, (FunctionType, MethodType)) and (value.__module__ or "").partition(".")[0] != "torch":
            yield value


def is_filled(cell: CellType) -> bool:
    """Whether a variable that a function closes over has a value."""
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False
