"""Mean average precision against cases computed by hand, and what is asked before it can be."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from netaug_fx.errors import InputError
from netaug_fx.training.detection.metrics import average_precision, need_coco

CLASSES = ("a", "b")
BOX = [10.0, 10.0, 50.0, 50.0]


def boxes(*corners: list[float]) -> Tensor:
    return torch.tensor(corners).reshape(-1, 4)


def found(*each: tuple[list[float], float, int]) -> dict[str, Tensor]:
    return {
        "boxes": boxes(*(box for box, _, _ in each)),
        "scores": torch.tensor([score for _, score, _ in each]),
        "labels": torch.tensor([label for _, _, label in each], dtype=torch.int64),
    }


def there(*each: tuple[list[float], int], ignore: tuple[bool, ...] = ()) -> dict[str, Tensor]:
    target = {"boxes": boxes(*(box for box, _ in each)), "labels": torch.tensor([label for _, label in each])}
    return {**target, "ignore": torch.tensor(ignore)} if ignore else target


def test_every_box_found_is_one_and_none_is_zero() -> None:
    whole = average_precision([(found((BOX, 0.9, 0)), there((BOX, 0)))], CLASSES)
    assert (whole["map"], whole["map_50"], whole["map_75"]) == (1.0, 1.0, 1.0)
    assert whole["by_class"] == {"a": 1.0, "b": None}
    assert average_precision([(found(), there((BOX, 0)))], CLASSES)["map"] == 0.0


def test_overlap_decides_at_which_thresholds_a_box_counts() -> None:
    """A box of 40 x 40 against one moved by 8 pixels: 32 x 40 over 48 x 40, two thirds, counts at 0.5 to 0.65."""
    moved = [18.0, 10.0, 58.0, 50.0]
    by = average_precision([(found((moved, 0.9, 0)), there((BOX, 0)))], CLASSES)
    assert by["map_50"] == pytest.approx(1.0)
    assert by["map_75"] == pytest.approx(0.0)
    assert by["map"] == pytest.approx(4 / 10)


def test_a_better_score_on_nothing_halves_the_precision() -> None:
    """Two boxes; ranked: wrong, right, right. Precision 1/2 and 2/3 at recalls 1/2 and 1; the envelope is 2/3."""
    other, nowhere = [100.0, 100.0, 140.0, 140.0], [200.0, 200.0, 240.0, 240.0]
    by = average_precision(
        [(found((nowhere, 0.9, 0), (BOX, 0.8, 0), (other, 0.7, 0)), there((BOX, 0), (other, 0)))], CLASSES
    )
    assert by["map"] == pytest.approx(2 / 3, abs=1e-4)


def test_classes_are_averaged_and_the_wrong_class_finds_nothing() -> None:
    by = average_precision([(found((BOX, 0.9, 0)), there((BOX, 0), (BOX, 1)))], CLASSES)
    assert by["by_class"] == {"a": 1.0, "b": 0.0}
    assert by["map"] == pytest.approx(0.5)


def test_sizes_are_told_apart_by_area() -> None:
    small, large = [0.0, 0.0, 31.0, 31.0], [100.0, 100.0, 200.0, 200.0]
    by = average_precision([(found((small, 0.9, 0)), there((small, 0), (large, 0)))], CLASSES)
    assert by["map_small"] == 1.0
    assert by["map_medium"] is None
    assert by["map_large"] == 0.0


def test_an_ignored_box_is_neither_missed_nor_wrongly_found() -> None:
    crowd = [100.0, 100.0, 300.0, 300.0]
    inside = [120.0, 120.0, 160.0, 160.0]
    target = there((BOX, 0), (crowd, 0), ignore=(False, True))
    assert average_precision([(found((inside, 0.95, 0), (BOX, 0.9, 0)), target)], CLASSES)["map"] == 1.0
    unmarked = there((BOX, 0), (crowd, 0), ignore=(False, False))
    assert average_precision([(found((inside, 0.95, 0), (BOX, 0.9, 0)), unmarked)], CLASSES)["map"] < 0.5


def test_an_image_without_boxes_counts_what_is_found_in_it_as_wrong() -> None:
    empty: Any = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    pairs = [(found((BOX, 0.8, 0)), there((BOX, 0))), (found((BOX, 0.9, 0)), empty)]
    assert average_precision(pairs, CLASSES)["map"] == pytest.approx(0.5, abs=1e-4)


def test_what_judges_is_asked_for_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    need_coco()
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.cocoeval", raising=False)
    with pytest.raises(InputError, match=r"pycocotools\.cocoeval cannot be imported.*netaug_fx\[train,detect\]"):
        need_coco()
