"""Names of the zoo's nets, for the command line and for configuration files."""

import difflib
import inspect
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from netaug_fx.errors import InputError

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Builder) -> Builder:
    """Decorator: make a function that builds a net known under the function's own name.

    Raises:
        InputError: another function already has that name.
    """
    name: str = builder.__name__
    if name in _BUILDERS:
        raise InputError(f"a model named {name!r} is already registered; rename the function {builder.__qualname__}.")
    _BUILDERS[name] = builder
    return builder


def names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    return tuple(sorted(_BUILDERS))


def create(name: str, **kwargs: object) -> nn.Module:
    """Build the net registered under ``name``.

    Args:
        name: one of :func:`names`.
        kwargs: passed on; all nets of this package take ``num_classes``, ``in_channels`` and ``dropout``.

    Example:
        >>> create("mcunet", num_classes=10).classifier.out_features
        10

    Raises:
        InputError: the name is unknown (the message gives the nearest ones), or an argument is unknown or out of range.
    """
    builder = _BUILDERS.get(name)
    if builder is None:
        close = difflib.get_close_matches(name, _BUILDERS, n=3)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise InputError(f"no model is named {name!r}. {hint}Known names: {', '.join(names())}.")
    signature = inspect.signature(builder)
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise InputError(f"model {name!r}: {error}. Its arguments are {', '.join(signature.parameters)}.") from error
    return builder(**kwargs)
