"""The detector: backbone, neck and head as one net, and the same with decoding in its graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netaug_fx.errors import InputError
from netaug_fx.models.detection.backbone import Backbone
from netaug_fx.models.detection.boxes import nms_by_class
from netaug_fx.models.detection.heads import Head, Predictions
from netaug_fx.models.detection.neck import PyramidNeck
from netaug_fx.models.detection.targets import Target

Detection = dict[str, Tensor]
"""One image's ``"boxes"`` float32 (m, 4), corners in pixels; ``"scores"`` float32 (m,); ``"labels"`` int64 (m,)."""

# More than that are not compared with each other, as in SSD and torchvision: the rest have scores near zero.
_CANDIDATES = 1000


class Detector(nn.Module):
    """Backbone, neck and head.

    Called with images it gives the head's raw predictions, a tuple of tensors; with images and targets a dict of losses
    by name, whose sum is the loss.

    Args:
        backbone: gives feature maps.
        neck: mixes them.
        head: makes predictions of them, and losses and boxes of these.

    Shapes: images (N, in_channels, H, W) of any height and width.

    Attributes:
        num_classes: classes, background not among them.
        example_input_shape: (in_channels, H, W) of one input, without the batch dimension.

    Example:
        >>> import torch
        >>> from netaug_fx.models import detection
        >>> detector = detection.create("yolo_scenes", num_classes=10).eval()
        >>> images = torch.rand(2, 1, 96, 96)
        >>> [tuple(each.shape) for each in detector(images)]
        [(2, 45, 12, 12), (2, 45, 6, 6)]
        >>> targets = [{"boxes": torch.tensor([[8.0, 8, 40, 56]]), "labels": torch.tensor([3])}] * 2
        >>> sorted(detector(images, targets))
        ['box', 'classes', 'objectness']
    """

    def __init__(self, backbone: Backbone, neck: PyramidNeck, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.num_classes = head.num_classes
        self.example_input_shape = backbone.example_input_shape

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions | dict[str, Tensor]:
        """Raw predictions, or with targets the losses.

        Raises:
            InputError: the targets cannot be used.
        """
        predictions: Predictions = self.head(self.neck(self.backbone(images)))
        if targets is None:
            return predictions
        return self.head.losses(predictions, targets, (images.shape[-2], images.shape[-1]))

    def decode(self, predictions: Predictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes (N, M, 4), corners in pixels, and scores (N, M, classes), by plain tensor operations.

        Args:
            predictions: what the detector gave for the images.
            size: height and width of the images in pixels.
        """
        return self.head.decode(predictions, size)

    def detect(
        self,
        predictions: Predictions,
        size: tuple[int, int],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        limit: int = 100,
    ) -> list[Detection]:
        """Detections of each image; arguments and results are those of :func:`select`.

        Args:
            predictions: what the detector gave for the images.
            size: height and width of the images in pixels.
            score_threshold, iou_threshold, limit: as for :func:`select`.
        """
        with torch.no_grad():
            found, scores = self.decode(predictions, size)
        return select(found, scores, score_threshold=score_threshold, iou_threshold=iou_threshold, limit=limit)


class Decoded(nn.Module):
    """A detector that gives boxes and scores: for export with decoding in the graph.

    Shapes: images (N, in_channels, H, W) -> boxes (N, M, 4), corners in pixels, and scores (N, M, classes).
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.example_input_shape = detector.example_input_shape

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores of every prediction."""
        return self.detector.decode(self.detector(images), (images.shape[-2], images.shape[-1]))


@torch.no_grad()
def select(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    limit: int = 100,
) -> list[Detection]:
    """From every prediction to what is reported: enough score, and no better box of the same class about there.

    A box may be reported for several classes.

    Args:
        boxes: (N, M, 4), corners in pixels.
        scores: (N, M, classes).
        score_threshold: below and at this a box is dropped; so is one whose score is no number.
        iou_threshold: a box that overlaps a better one of its class by more is dropped.
        limit: most detections of an image.

    Returns:
        One dict for each image, best detections first.

    Raises:
        InputError: shapes that do not fit together, or a limit below one.
    """
    if boxes.shape[:2] != scores.shape[:2] or boxes.dim() != 3 or scores.dim() != 3 or boxes.shape[2] != 4:
        raise InputError(
            f"boxes have shape {list(boxes.shape)} and scores {list(scores.shape)}; expected [N, M, 4] and "
            "[N, M, classes], as decode gives them."
        )
    if limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1 detection an image.")
    found = []
    for own_boxes, own_scores in zip(boxes.float(), scores.float(), strict=True):
        rows, labels = (own_scores > score_threshold).nonzero(as_tuple=True)
        values = own_scores[rows, labels]
        best = values.argsort(descending=True, stable=True)[:_CANDIDATES]
        rows, labels, values = rows[best], labels[best], values[best]
        kept = nms_by_class(own_boxes[rows], values, labels, iou_threshold)[:limit]
        found.append({"boxes": own_boxes[rows[kept]], "scores": values[kept], "labels": labels[kept]})
    return found
