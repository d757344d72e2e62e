"""The losses of the YOLOv3-style head, and which prediction has to find which box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.models.detection.anchors import side_of
from netaug_fx.models.detection.boxes import giou, pairwise_cover, pairwise_iou, to_centres
from netaug_fx.models.detection.targets import Batch

# A prediction that no box is given to, but that overlaps one by more, need not say that nothing is there. Darknet's
# settings for COCO have 0.7 (the paper says 0.5).
_NO_BACKGROUND = 0.7
# Anchors as like a box as this are given to it too, beside the one that is most like it: the paper's one prediction for
# a box teaches boxes slowly where there are few.
_ALSO = 0.5
# A prediction with more of its area than this in an ignored box need not say that nothing is there.
_IN_IGNORED = 0.5
_BOX_WEIGHT = 2.0


@dataclass(frozen=True)
class Assignment:
    """Predictions that have to find a box, each one box, P in all; int64 (P,) each.

    Attributes:
        images: the image.
        predictions: the prediction in its image.
        truths: the box in its image.
    """

    images: Tensor
    predictions: Tensor
    truths: Tensor


@torch.no_grad()
def assign(
    batch: Batch,
    shapes: Tensor,
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size: tuple[int, int],
) -> Assignment:
    """Gives each box to the anchor most like it in shape, at the pixel of the feature map that its centre is in.

    Also to every other anchor that is alike enough. Where two boxes want the same prediction, it goes to the one it is
    the best anchor of, then to the one more alike, then to the first. Centres outside the image count to its border.

    Args:
        batch: the boxes, (N, T, 4).
        shapes, maps, strides, size: as for :func:`~netaug_fx.models.detection.anchors.priors`.

    Paper: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.1.
    """
    levels, anchors, _ = shapes.shape
    boxes = to_centres(batch.boxes)
    likeness = _likeness(boxes[..., 2:], shapes.flatten(0, 1).float() * side_of(size))
    best = F.one_hot(likeness.argmax(-1), levels * anchors).bool()
    wanted = (best | (likeness > _ALSO)) & batch.wanted[..., None]

    grid = torch.tensor(maps, device=shapes.device).repeat_interleave(anchors, 0)
    stride = torch.tensor(strides, device=shapes.device).repeat_interleave(anchors)
    pixels = grid.prod(1)
    first = pixels.cumsum(0) - pixels
    column, row = (
        (boxes[..., axis, None] / stride).floor().clamp(min=0).minimum(grid[:, 1 - axis] - 1).long() for axis in (0, 1)
    )
    number = first + row * grid[:, 1] + column

    images, truths, _ = wanted.nonzero(as_tuple=True)
    claims = number[wanted] + images * pixels.sum()
    winners = _first_of_each(claims, (likeness + best)[wanted])
    return Assignment(images[winners], number[wanted][winners], truths[winners])


def _likeness(sizes: Tensor, shapes: Tensor) -> Tensor:
    """IoU of boxes with anchors about the same centre: (N, T, 2), (A, 2) -> (N, T, A)."""
    shared = torch.minimum(sizes[..., None, :], shapes).prod(-1)
    return shared / (sizes.prod(-1)[..., None] + shapes.prod(-1) - shared)


def _first_of_each(claims: Tensor, merits: Tensor) -> Tensor:
    """Index of the claim with the highest merit for each thing that is claimed; of equal ones the first."""
    order = merits.argsort(descending=True, stable=True)
    order = order[claims[order].argsort(stable=True)]
    sorted_claims = claims[order]
    fresh = torch.ones_like(sorted_claims, dtype=torch.bool)
    fresh[1:] = sorted_claims[1:] != sorted_claims[:-1]
    return order[fresh]


def yolo_losses(raw: Tensor, boxes: Tensor, batch: Batch, assignment: Assignment) -> dict[str, Tensor]:
    """Losses of a batch, each summed over its predictions and divided by how many have a box (at least one an image).

    Args:
        raw: float32 (N, M, 5 + classes): four numbers of the box, objectness, classes, as logits.
        boxes: (N, M, 4), the predicted boxes, corners in pixels.
        batch: what is to be found.
        assignment: which prediction has to find which box.

    Returns:
        ``"box"``: twice 1 - GIoU of predicted and true box; ``"objectness"``: cross-entropy of whether there is a box,
        without predictions that overlap one anyway, or lie in an ignored one; ``"classes"``: cross-entropy of each
        class.

    Papers: Redmon and Farhadi, YOLOv3, arXiv 1804.02767; Rezatofighi et al., GIoU, arXiv 1902.09630 (the box's loss,
    in the place of YOLOv3's squares).
    """
    own = assignment.images, assignment.predictions
    count = max(len(assignment.images), len(raw))
    present = torch.zeros_like(raw[..., 4])
    present[own] = 1
    counted = ~_excused(boxes.detach(), batch) | present.bool()
    objectness = F.binary_cross_entropy_with_logits(raw[..., 4], present, reduction="none")
    classes = raw[own][:, 5:]
    labels = F.one_hot(batch.labels[assignment.images, assignment.truths], classes.shape[1]).to(classes)
    truths = batch.boxes[assignment.images, assignment.truths]
    return {
        "box": _BOX_WEIGHT * (1 - giou(boxes[own], truths.to(boxes))).sum() / count,
        "objectness": objectness[counted].sum() / count,
        "classes": F.binary_cross_entropy_with_logits(classes, labels, reduction="sum") / count,
    }


@torch.no_grad()
def _excused(boxes: Tensor, batch: Batch) -> Tensor:
    """Predictions that need not say that nothing is there: (N, M)."""
    truths = batch.boxes.to(boxes)
    overlaps = (pairwise_iou(boxes, truths) > _NO_BACKGROUND) & batch.wanted[:, None]
    covered = (pairwise_cover(boxes, truths) > _IN_IGNORED) & batch.ignored[:, None]
    return (overlaps | covered).any(-1)
