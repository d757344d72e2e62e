"""Guards let pass what decided the way, refuse everything else, and describe arguments without their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from netaug_fx.errors import BranchError
from netaug_fx.guards import expect, structure


@dataclass
class Settings:
    rate: float = 0.1


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "linear", (2, 3), ["a"], torch.float32])
def test_the_same_value_passes(value: Any) -> None:
    expect(value, value, "it")


@pytest.mark.parametrize(
    ("found", "expected"),
    [(torch.zeros(2), None), (torch.ones(1), True), (None, False), (2, 3), ("a", "b"), (0.5, None), ([1], [1, 2])],
)
def test_another_is_refused_in_words(found: Any, expected: Any) -> None:
    with pytest.raises(BranchError, match=r"argument 'x' is .* but was .*example_inputs.*pin"):
        expect(found, expected, "argument 'x'")


def test_structures_tell_what_is_there_and_not_how_large() -> None:
    small = {"mask": None, "sizes": (3, 4), "maps": [torch.zeros(2), torch.zeros(3)], "mode": "area", "rate": 0.5}
    large = {"mask": None, "sizes": (5, 6), "maps": [torch.ones(7), torch.ones(8)], "mode": "area", "rate": 0.7}
    assert structure(small) == structure(large)
    for key, other in (("mask", torch.zeros(1)), ("maps", [torch.zeros(2)]), ("mode", "linear"), ("sizes", None)):
        assert structure({**small, key: other}) != structure(small)
    assert structure(Settings()) == "Settings"


def test_the_module_is_named_once() -> None:
    error = BranchError("argument 'mask' is 1").within("block.0", "Block")
    assert str(error) == "module 'block.0' (Block): argument 'mask' is 1"
    assert error.within("", "Net") is error
    assert str(BranchError("x").within("", "Net")) == "the model (Net): x"
