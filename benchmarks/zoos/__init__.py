"""The zoos that coverage is measured on: other people's nets by name, each with an input.

A zoo is a module with two functions: ``names()`` lists its nets without building one, and ``net(name)`` describes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""


@dataclass(frozen=True)
class Net:
    """One net of a zoo.

    Attributes:
        name: Its name in the zoo.
        family: What the summary table groups it under.
        build: Makes the net with random weights; nothing is fetched.
        inputs: A batch of two for the built net, the same at every call.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Inputs]
