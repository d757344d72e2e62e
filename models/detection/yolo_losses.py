"""The losses of the YOLOv3-style head, and which prediction has to find which box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.models.detection.anchors import side_of
from netaug_fx.models.detection.boxes import giou, pairwise_cover, pairwise_iou, to_centres
from netaug_fx.models.detection.matching import Match, match
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


@torch.no_grad()
def assign(
    batch: Batch,
    shapes: Tensor,
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size: tuple[int, int],
) -> Match:
    """Gives each box to the anchor most like it in shape, at the pixel of the feature map that its centre is in.

    Also to every other anchor there that is alike enough. Where two boxes want the same prediction, one takes the next
    best anchor (:func:`~netaug_fx.models.detection.matching.match`). Centres outside the image count to its border.

    Args:
        batch: the boxes, (N, T, 4).
        shapes, maps, strides, size: as for :func:`~netaug_fx.models.detection.anchors.priors`.

    Paper: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.1.
    """
    anchors = shapes.shape[1]
    boxes = to_centres(batch.boxes)
    likeness = _likeness(boxes[..., 2:], shapes.flatten(0, 1).float() * side_of(size))

    grid = torch.tensor(maps, device=shapes.device).repeat_interleave(anchors, 0)
    stride = torch.tensor(strides, device=shapes.device).repeat_interleave(anchors)
    pixels = grid.prod(1)
    column, row = (
        (boxes[..., axis, None] / stride).floor().clamp(min=0).minimum(grid[:, 1 - axis] - 1).long() for axis in (0, 1)
    )
    number = pixels.cumsum(0) - pixels + row * grid[:, 1] + column
    nowhere = likeness.new_full((*likeness.shape[:2], int(pixels.sum())), -1)
    return match(nowhere.scatter(2, number, likeness), batch.wanted, _ALSO)


def _likeness(sizes: Tensor, shapes: Tensor) -> Tensor:
    """IoU of boxes with anchors about the same centre: (N, T, 2), (A, 2) -> (N, T, A)."""
    shared = torch.minimum(sizes[..., None, :], shapes).prod(-1)
    return shared / (sizes.prod(-1)[..., None] + shapes.prod(-1) - shared)


def yolo_losses(raw: Tensor, boxes: Tensor, batch: Batch, matched: Match) -> dict[str, Tensor]:
    """Losses of a batch, each summed over its predictions and divided by how many have a box (at least one an image).

    Args:
        raw: float32 (N, M, 5 + classes): four numbers of the box, objectness, classes, as logits.
        boxes: (N, M, 4), the predicted boxes, corners in pixels.
        batch: what is to be found.
        matched: which prediction has to find which box.

    Returns:
        ``"box"``: twice 1 - GIoU of predicted and true box; ``"objectness"``: cross-entropy of whether there is a box,
        without predictions that overlap one anyway, or lie in an ignored one; ``"classes"``: cross-entropy of each
        class.

    Papers: Redmon and Farhadi, YOLOv3, arXiv 1804.02767; Rezatofighi et al., GIoU, arXiv 1902.09630 (the box's loss,
    in the place of YOLOv3's squares).
    """
    positive = matched.positive
    count = max(int(positive.sum()), len(raw))
    counted = positive | ~_excused(boxes.detach(), batch)
    objectness = raw[..., 4][counted]
    classes = raw[..., 5:][positive]
    labels = F.one_hot(matched.of(batch.labels), classes.shape[1])
    truths = matched.of(batch.boxes)
    present = positive[counted]
    return {
        "box": _BOX_WEIGHT * (1 - giou(boxes[positive], truths.to(boxes))).sum() / count,
        "objectness": F.binary_cross_entropy_with_logits(objectness, present.to(raw), reduction="sum") / count,
        "classes": F.binary_cross_entropy_with_logits(classes, labels.to(raw), reduction="sum") / count,
    }


@torch.no_grad()
def _excused(boxes: Tensor, batch: Batch) -> Tensor:
    """Predictions that need not say that nothing is there: (N, M)."""
    truths = batch.boxes.to(boxes)
    overlaps = (pairwise_iou(boxes, truths) > _NO_BACKGROUND) & batch.wanted[:, None]
    covered = (pairwise_cover(boxes, truths) > _IN_IGNORED) & batch.ignored[:, None]
    return (overlaps | covered).any(-1)
