"""Names of the zoo's nets, for the command line and for configuration files."""

import difflib
import inspect
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import nn

from netaug_fx.errors import InputError

Net = TypeVar("Net", bound=nn.Module)
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


class Registry(Generic[Net]):
    """Functions that build nets of one kind, by name.

    Args:
        kind: what one of them is called in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.builders: dict[str, Callable[..., Net]] = {}

    def register(self, builder: Callable[..., Net]) -> None:
        """Make a function known under its own name.

        Raises:
            InputError: another function already has that name.
        """
        name: str = builder.__name__
        if name in self.builders:
            raise InputError(
                f"a {self.kind} named {name!r} is already registered; rename the function {builder.__qualname__}."
            )
        self.builders[name] = builder

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self.builders))

    def create(self, name: str, **kwargs: object) -> Net:
        """Build the net registered under ``name``.

        Raises:
            InputError: the name is unknown (the message gives the nearest ones), or an argument is unknown or out of
                range.
        """
        builder = self.builders.get(name)
        if builder is None:
            close = difflib.get_close_matches(name, self.builders, n=3)
            hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise InputError(f"no {self.kind} is named {name!r}. {hint}Known names: {', '.join(self.names())}.")
        signature = inspect.signature(builder)
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            known = ", ".join(signature.parameters)
            raise InputError(f"{self.kind} {name!r}: {error}. Its arguments are {known}.") from error
        return builder(**kwargs)


CLASSIFIERS: Registry[nn.Module] = Registry("model")


def register(builder: Builder) -> Builder:
    """Decorator: make a function that builds a net known under the function's own name.

    Raises:
        InputError: another function already has that name.
    """
    CLASSIFIERS.register(builder)
    return builder


def names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    return CLASSIFIERS.names()


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
    return CLASSIFIERS.create(name, **kwargs)
