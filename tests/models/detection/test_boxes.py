"""Box utilities: by hand, against a plain implementation in Python's floats, and with torchvision's functions."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from netaug_fx.models.detection import boxes

Box = list[float]


def plain_iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def plain_giou(a: Box, b: Box) -> float:
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    overlap = plain_iou(a, b)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union = areas / (1 + overlap)
    return overlap - (around - union) / around


def plain_nms(found: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """One box after the other, in Python."""
    kept: list[int] = []
    for index in sorted(range(len(found)), key=lambda i: (-float(scores[i]), i)):
        if all(plain_iou(found[index].tolist(), found[other].tolist()) <= threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def random_boxes(count: int, seed: int = 0) -> Tensor:
    """Whole numbers, so that overlaps come out the same in any precision; some without area."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 16, (count, 2, 2), generator=generator).float()
    return torch.cat((corners.amin(1), corners.amax(1)), 1)


@pytest.fixture(params=["plain", "torchvision"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Both ways; gives the names of torchvision's functions that were called.

    Its compiled operator is stood in for, since not every installation can load it.
    """
    called: list[str] = []
    if request.param == "plain":
        monkeypatch.setattr(boxes, "_loaded", lambda: None)
        yield called
        return
    real = importlib.import_module("torchvision.ops")

    def noted(name: str) -> Any:
        def function(*args: Any) -> Any:
            called.append(name)
            return plain_nms(*args) if name == "nms" else getattr(real, name)(*args)

        return function

    names = ("box_area", "box_convert", "box_iou", "clip_boxes_to_image", "nms")
    monkeypatch.setattr(boxes, "_loaded", lambda: SimpleNamespace(**{name: noted(name) for name in names}))
    yield called
    assert called


def test_conversions_by_hand(ops: list[str]) -> None:
    corners = torch.tensor([[1.0, 2.0, 4.0, 8.0], [5.0, 5.0, 5.0, 6.0]])
    centres = torch.tensor([[2.5, 5.0, 3.0, 6.0], [5.0, 5.5, 0.0, 1.0]])
    assert torch.equal(boxes.to_centres(corners), centres)
    assert torch.equal(boxes.to_corners(centres), corners)
    assert boxes.to_centres(torch.zeros(0, 4)).shape == (0, 4)


def test_clipping_and_area_by_hand(ops: list[str]) -> None:
    found = torch.tensor([[-3.0, -1.0, 5.0, 30.0], [2.0, 3.0, 4.0, 5.0], [40.0, 1.0, 50.0, 2.0]])
    clipped = torch.tensor([[0.0, 0.0, 5.0, 10.0], [2.0, 3.0, 4.0, 5.0], [20.0, 1.0, 20.0, 2.0]])
    assert torch.equal(boxes.clip(found, (10, 20)), clipped)
    assert boxes.area(clipped).tolist() == [50.0, 4.0, 0.0]


def test_overlaps_by_hand(ops: list[str]) -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [3.0, 3.0, 3.0, 3.0]])
    b = torch.tensor([[2.0, 2.0, 6.0, 6.0], [4.0, 0.0, 8.0, 4.0], [3.0, 3.0, 3.0, 3.0]])
    expected = torch.tensor([[4 / 28, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(boxes.pairwise_iou(a, b), expected)


def test_lists_and_batches_agree_with_plain_floats(ops: list[str]) -> None:
    a, b = random_boxes(30), random_boxes(20, seed=1)
    expected = torch.tensor([[plain_iou(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(boxes.pairwise_iou(a, b), expected)
    assert torch.equal(boxes.pairwise_iou(a[None], b[None])[0], boxes.pairwise_iou(a, b))
    assert torch.equal(boxes.to_centres(a[None])[0], boxes.to_centres(a))
    assert torch.equal(boxes.to_corners(a[None])[0], boxes.to_corners(a))
    assert torch.equal(boxes.clip(a[None], (9, 7))[0], boxes.clip(a, (9, 7)))
    assert torch.equal(boxes.area(a[None])[0], boxes.area(a))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_that_of_a_plain_loop_ties_included(ops: list[str], seed: int, threshold: float) -> None:
    found = random_boxes(60, seed)
    scores = torch.randint(0, 6, (60,), generator=torch.Generator().manual_seed(seed)) / 8  # many are equal
    assert boxes.nms(found, scores, threshold).tolist() == plain_nms(found, scores, threshold).tolist()


def test_suppression_by_hand(ops: list[str]) -> None:
    # The second is dropped by the first, so that it cannot drop the third.
    found = torch.tensor([[0.0, 0, 10, 10], [3.0, 0, 13, 10], [6.0, 0, 16, 10], [50.0, 0, 60, 10]])
    assert boxes.nms(found, torch.tensor([0.9, 0.8, 0.7, 0.95]), 0.5).tolist() == [3, 0, 2]
    # An overlap of the threshold itself is none too many; of equal scores the first is kept.
    halves = torch.tensor([[0.0, 0, 4, 2], [0.0, 0, 2, 2]])
    assert boxes.nms(halves, torch.tensor([0.5, 0.5]), 0.5).tolist() == [0, 1]
    assert boxes.nms(halves, torch.tensor([0.5, 0.5]), 0.49).tolist() == [0]
    assert boxes.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_classes_do_not_suppress_each_other(ops: list[str]) -> None:
    found = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1)
    scores, labels = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.2]), torch.tensor([7, 2, 7, 2, 0])
    assert boxes.nms_by_class(found, scores, labels, 0.5).tolist() == [3, 2, 4]
    assert boxes.nms_by_class(found[:0], scores[:0], labels[:0], 0.5).tolist() == []


def test_cover_is_the_part_of_a_box_within_another() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 3.0]])
    b = torch.tensor([[1.0, 0.0, 9.0, 9.0], [0.0, 0.0, 2.0, 2.0]])
    assert boxes.pairwise_cover(a, b).tolist() == [[0.5, 1.0], [0.0, 0.0]]


def test_generalised_overlap_by_hand_and_in_general() -> None:
    apart = boxes.giou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0]))
    assert float(apart) == pytest.approx(-1 / 3)
    a, b = random_boxes(60), random_boxes(60, seed=1)
    proper = (boxes.area(a) > 0) & (boxes.area(b) > 0)
    expected = [plain_giou(x, y) for x, y in zip(a[proper].tolist(), b[proper].tolist(), strict=True)]
    torch.testing.assert_close(boxes.giou(a[proper], b[proper]), torch.tensor(expected))


def test_generalised_overlap_is_that_of_torchvision() -> None:
    a, b = random_boxes(20) + torch.tensor([0, 0, 1, 1]), random_boxes(20, seed=1) + torch.tensor([0, 0, 1, 1])
    theirs = importlib.import_module("torchvision.ops").generalized_box_iou(a, b).diagonal()
    torch.testing.assert_close(boxes.giou(a, b), theirs)


def test_generalised_overlap_has_finite_gradients_without_area() -> None:
    a = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]], requires_grad=True)
    boxes.giou(a, torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_without_working_operators_the_plain_functions_serve(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("Couldn't load custom C++ ops")

    def load(_name: str) -> Any:
        if fault == "missing":
            raise ModuleNotFoundError("torchvision")
        return SimpleNamespace(nms=broken)

    monkeypatch.setattr(boxes, "importlib", SimpleNamespace(import_module=load))
    boxes._loaded.cache_clear()
    try:
        assert boxes._loaded() is None
        assert boxes.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
    finally:
        monkeypatch.undo()
        boxes._loaded.cache_clear()


def test_operators_that_work_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    working = SimpleNamespace(nms=plain_nms)
    monkeypatch.setattr(boxes, "importlib", SimpleNamespace(import_module=lambda _name: working))
    boxes._loaded.cache_clear()
    try:
        assert boxes._loaded() is working
    finally:
        monkeypatch.undo()
        boxes._loaded.cache_clear()
