"""Guards: what a rewritten forward took for granted when it was traced, asked again each time it runs.

A trace holds one way through a forward: the one that the example inputs took. Where an argument or a condition decided
the way, the graph calls ``expect``, so that an input which would go another way is refused, never computed wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from netaug_fx.errors import BranchError


def expect(found: Any, expected: Any, what: str) -> None:
    """Passes if ``found`` is what decided the way when the forward was traced.

    Raises:
        BranchError: it is something else.
    """
    if found is expected or (not isinstance(found, Tensor) and bool(found == expected)):
        return
    raise BranchError(
        f"{what} is {found!r}, but was {expected!r} on the example inputs that augment analysed, and decides which way "
        "the forward goes: call augment with example_inputs that go the way of your training data, or keep this module "
        "as it is with pin"
    )


def structure(value: Any) -> Any:
    """What an argument is made of: where it has tensors, nothing, yes or no; numbers only as such, for sizes change."""
    if isinstance(value, Tensor):
        return "tensor"
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return "mapping", tuple((key, structure(value[key])) for key in sorted(value, key=str))
    if isinstance(value, (tuple, list)):
        return "sequence", tuple(structure(item) for item in value)
    return type(value).__name__
