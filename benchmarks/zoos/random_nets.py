"""The test suite's random nets, by number: stem, one to five blocks of 37 kinds with their options, head.

What is drawn depends on the number alone, so that a net which fails can be built again.
"""

from __future__ import annotations

import random

from benchmarks.zoos import Net
from tests import random_nets

COUNT = 5000


def names() -> list[str]:
    """The numbers, as words of five digits."""
    return [f"{number:05d}" for number in range(COUNT)]


def net(name: str) -> Net:
    """The net of a number; its family is how many blocks it has."""
    spec = random_nets.random_spec(random.Random(int(name)))
    return Net(
        name,
        f"{len(spec['blocks'])} blocks",
        lambda: random_nets.build(spec, seed=int(name)),
        lambda _model: random_nets.inputs(spec, batch=2),
    )
