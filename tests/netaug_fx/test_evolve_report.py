"""What the report of generations says, whichever way they went."""

from __future__ import annotations

from typing import Any

import pytest

from netaug_fx.training.evolve_report import verdict
from netaug_fx.training.facts import margin


def facts(dense: list[float], slim: list[float], control: float | None, images: int = 400) -> dict[str, Any]:
    generations = [{"dense": d, "slim": s} for d, s in zip(dense, slim, strict=True)]
    return {
        "generations": generations,
        "control": None if control is None else {"dense": control},
        "data": {"val_images": images},
    }


@pytest.mark.parametrize(
    ("dense", "slim", "control", "words"),
    [
        (
            [0.5, 0.9],
            [0.1, 0.5],
            0.8,
            [
                "The dense net goes from 50.0% after the first generation to 90.0% after the last.",
                "That is 10.0 points above one run of as many epochs (80.0%)",
                "The slim net goes from 10.0% after the first generation to 50.0% after the last, 40.0 points behind",
            ],
        ),
        ([0.5, 0.6], [0.1, 0.8], None, ["20.0 points ahead of it."]),
        ([0.9, 0.91], [0.1, 0.90], 0.91, ["level with the dense net within chance.", "That is level with one run"]),
        (
            [0.7],
            [0.2],
            None,
            [
                "The dense net has 70.0% after the one generation there was.",
                "The slim net has 20.0% after the one generation there was, 50.0 points behind it.",
            ],
        ),
    ],
)
def test_the_verdict(dense: list[float], slim: list[float], control: float | None, words: list[str]) -> None:
    found = verdict(facts(dense, slim, control))
    assert all(word in found for word in words), found
    assert ("one run of as many epochs" in found) == (control is not None)


def test_where_all_images_are_right_a_few_may_still_be_chance() -> None:
    assert 0 < margin(1.0, 1.0, 400) < 0.02
    found = verdict(facts([1.0, 1.0], [1.0, 1.0], 1.0))
    assert "differences below about 0.7 points are within chance" in found
    assert "level with the dense net within chance" in found


def test_margins_of_middling_accuracies_are_the_usual_ones() -> None:
    assert margin(0.5, 0.5, 10_000) == pytest.approx(1.96 * (2 * 0.25 / 10_000) ** 0.5, rel=1e-3)
