"""Two models side by side without running them: class, state_dict, module tree; and one with the other's weights.

In: a pair with ``tiny`` and ``model``. Out: a ``Check``. Each check names the first few places that differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, fx, nn

from netaug_fx.passes.report import Check


class Pair(Protocol):
    """What is compared: ``tiny`` is expected to be like ``model``."""

    tiny: nn.Module
    model: nn.Module


def check_class(pair: Pair) -> Check:
    """Whether both models are instances of the very same class."""
    names = [_class_name(type(model)) for model in (pair.model, pair.tiny)]
    if same_class(pair.tiny, pair.model):
        return Check("class", True, names[1], *names)
    detail = "another class of the same name" if names[0] == names[1] else ""
    return Check("class", False, detail, *names)


def check_state(pair: Pair) -> Check:
    """Whether both state_dicts have the same keys, in order, with the same shapes and dtypes."""
    theirs, ours = ({key: _kind(value) for key, value in m.state_dict().items()} for m in (pair.model, pair.tiny))
    if list(theirs.items()) == list(ours.items()):
        return Check("state_dict", True, f"{len(ours)} tensors of the same names, shapes and dtypes")
    problems = [f"{key} is missing ({kind})" for key, kind in theirs.items() if key not in ours]
    problems += [f"{key} is new ({kind})" for key, kind in ours.items() if key not in theirs]
    problems += [
        f"{key} is {ours[key]}, expected {kind}" for key, kind in theirs.items() if key in ours and ours[key] != kind
    ]
    expected, actual = f"{len(theirs)} tensors", f"{len(ours)} tensors"
    return Check("state_dict", False, _listed(problems or ["the keys come in another order"]), expected, actual)


def check_modules(pair: Pair) -> Check:
    """Whether both module trees have the same paths, classes and settings (what ``repr`` shows of a module)."""
    theirs, ours = (dict(model.named_modules(remove_duplicate=False)) for model in (pair.model, pair.tiny))
    problems = [f"{path} is missing" for path in theirs if path not in ours]
    problems += [f"{path} is new" for path in ours if path not in theirs]
    for path, expected in theirs.items():
        actual = ours.get(path)
        if actual is None:
            continue
        where = path or "the model"
        if not same_class(actual, expected):
            problems.append(f"{where} is a {_class_name(type(actual))}, expected {_class_name(type(expected))}")
        elif actual.extra_repr() != expected.extra_repr():
            problems.append(f"{where} is ({actual.extra_repr()}), expected ({expected.extra_repr()})")
    if not problems and list(theirs) != list(ours):
        problems.append("the modules come in another order")
    counts = f"{len(theirs)} modules", f"{len(ours)} modules"
    if problems:
        return Check("modules", False, _listed(problems), *counts)
    return Check("modules", True, f"{len(ours)} modules of the same paths, classes and settings", *counts)


@contextlib.contextmanager
def borrowed_tensors(model: nn.Module, owner: nn.Module) -> Iterator[None]:
    """Gives ``model`` the parameters and saved buffers of ``owner`` for the block; no values are copied.

    Both must have the same state_dict. What ``model`` had comes back afterwards, as the same objects.
    """
    owners = dict(owner.named_modules(remove_duplicate=False))
    former: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for path, module in model.named_modules():
            lender = owners.get(path)
            names = [*module._parameters, *(n for n in module._buffers if n not in module._non_persistent_buffers_set)]
            for name in names:
                mine, theirs = getattr(module, name), getattr(lender, name, None)
                if mine is not None and theirs is not None:
                    former.append((module, name, mine))
                    setattr(module, name, theirs)  # not the table: recurrent layers keep a second list
        yield
    finally:
        for module, name, tensor in reversed(former):
            setattr(module, name, tensor)


def same_class(actual: nn.Module, expected: nn.Module) -> bool:
    """Whether two modules are of one class; graph modules, each of which has its own, whether their code is one."""
    if isinstance(actual, fx.GraphModule) and isinstance(expected, fx.GraphModule):
        return actual.code == expected.code
    return type(actual) is type(expected)


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _kind(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _listed(problems: list[str], most: int = 3) -> str:
    return "; ".join(problems[:most]) + (f"; and {len(problems) - most} more" if len(problems) > most else "")
