"""Hand-made nets, one for every way in which channels are wired in practice: ``WIRINGS[name].build()``."""

from tests.wirings import (
    attention,
    blocks,
    chains,
    channel_moves,
    interfaces,
    layers,
    literals,
    norms,
    reshapes,
    spans,
    weights,
)
from tests.wirings.registry import CLASSES, WIRINGS, Inputs, Wiring, tensors_in

__all__ = [
    "CLASSES",
    "WIRINGS",
    "Inputs",
    "Wiring",
    "attention",
    "blocks",
    "chains",
    "channel_moves",
    "interfaces",
    "layers",
    "literals",
    "norms",
    "reshapes",
    "spans",
    "tensors_in",
    "weights",
]
