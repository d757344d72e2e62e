"""Boxes: conversions, clipping, areas, overlaps, and what is left of many boxes on one thing.

A box is four numbers, the corners ``x1, y1, x2, y2`` in pixels unless said otherwise; tensors of boxes have shape
(..., 4). Lists of boxes (two dimensions) go to torchvision where it is installed and its operators load; everything
else, batches and exported graphs included, is computed by the plain functions here, which give the same results.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

_TINY = 1e-7


def to_centres(boxes: Tensor) -> Tensor:
    """Corners ``x1, y1, x2, y2`` as ``centre x, centre y, width, height``: (..., 4) -> (..., 4)."""
    if (ops := _torchvision(boxes)) is not None:
        return _tensor(ops.box_convert(boxes, "xyxy", "cxcywh"))
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def to_corners(boxes: Tensor) -> Tensor:
    """``centre x, centre y, width, height`` as corners ``x1, y1, x2, y2``: (..., 4) -> (..., 4)."""
    if (ops := _torchvision(boxes)) is not None:
        return _tensor(ops.box_convert(boxes, "cxcywh", "xyxy"))
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat((centre - half, centre + half), -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut off at the borders of an image of ``size`` (height, width): (..., 4) -> (..., 4)."""
    if (ops := _torchvision(boxes)) is not None:
        return _tensor(ops.clip_boxes_to_image(boxes, size))
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


def area(boxes: Tensor) -> Tensor:
    """Width times height, in square pixels: (..., 4) -> (...)."""
    if (ops := _torchvision(boxes)) is not None:
        return _tensor(ops.box_area(boxes))
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of ``a`` with every box of ``b``: (..., A, 4), (..., B, 4) -> (..., A, B).

    Two boxes without area have none in common: 0, where torchvision gives NaN.
    """
    if (ops := _torchvision(a, b)) is not None:
        return _tensor(ops.box_iou(a, b)).nan_to_num(0.0)
    shared = _intersections(a, b)
    return (shared / (area(a)[..., :, None] + area(b)[..., None, :] - shared)).nan_to_num(0.0)


def pairwise_cover(a: Tensor, b: Tensor) -> Tensor:
    """Which part of each box of ``a`` lies in each box of ``b``: (..., A, 4), (..., B, 4) -> (..., A, B).

    This is COCO's overlap with crowds, which one box cannot be expected to fill. A box without area has no part in any.
    """
    return (_intersections(a, b) / area(a)[..., :, None]).nan_to_num(0.0)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of ``a[i]`` with ``b[i]``, in [-1, 1]: (..., 4), (..., 4) -> (...).

    IoU less the empty part of the smallest box around both, so that boxes apart attract each other too. Finite, with
    finite gradients, for boxes without area as well.

    Paper: Rezatofighi et al., Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.
    """
    shared_size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    around_size = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    shared, around = shared_size.prod(-1), around_size.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return shared / union.clamp(min=_TINY) - (around - union) / around.clamp(min=_TINY)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: boxes (n, 4), scores (n,) -> int64 indices of those kept, best first.

    A box is dropped if a better one that is kept overlaps it by more than the threshold. Of equal scores the one that
    comes first is the better one.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order]
    if (ops := _torchvision(boxes)) is not None:
        return order[_tensor(ops.nms(boxes, scores, iou_threshold))]
    overlaps = torch.triu(pairwise_iou(boxes, boxes) > iou_threshold, diagonal=1)
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        # Box by box this would be a loop in Python. All at once it settles from the best box downwards: whatever
        # depends on settled boxes alone is settled after one round more, and mostly a few rounds are enough.
        settled = ~(overlaps & kept[:, None]).any(0)
        if torch.equal(settled, kept):
            return order[kept]
        kept = settled


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each class: (n, 4), (n,), int64 (n,) -> indices of those kept, best first."""
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for label in sorted(set(labels.tolist())):
        own = (labels == label).nonzero()[:, 0]
        kept[own[nms(boxes[own], scores[own], iou_threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def _intersections(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _torchvision(*boxes: Tensor) -> Any:
    """torchvision's box functions, for lists of boxes outside of captured graphs; None where they are not to be had."""
    if torch.compiler.is_compiling() or any(each.dim() != 2 for each in boxes):
        return None
    return _loaded()


@functools.cache
def _loaded() -> Any:
    """torchvision.ops if it can be imported and its compiled operators run, else None."""
    try:
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception:  # not installed, or built for another torch, which fails in ways of its own
        return None
    return ops


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
