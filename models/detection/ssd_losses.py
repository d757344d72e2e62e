"""The losses of the SSDLite-style head, the matching of anchors to boxes, and how boxes are written as offsets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.models.detection.boxes import pairwise_cover, pairwise_iou, to_centres, to_corners
from netaug_fx.models.detection.targets import Batch

# Offsets of about one: the scale of SSD's code, which its paper does not mention.
_CENTRE_SCALE = 0.1
_SIZE_SCALE = 0.2
# No box grows by more than that from its anchor; the exponential of a large number would be infinite.
MOST_GROWTH = math.log(1000 / 16)
_LEAST_SIZE = 1.0
_MATCH = 0.5
_IN_IGNORED = 0.5
_NEGATIVES = 3


@dataclass(frozen=True)
class Match:
    """What each anchor has to find.

    Attributes:
        positive: bool (N, M): it has to find a box.
        truth: int64 (N, M): which box, where positive.
        negative: bool (N, M): it has to find background. The others are neither.
    """

    positive: Tensor
    truth: Tensor
    negative: Tensor


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Boxes as offsets from anchors, both centre x, centre y, width, height: (..., 4), (..., 4) -> (..., 4).

    Sides below a pixel count as a pixel.
    """
    centres = (boxes[..., :2] - priors[..., :2]) / priors[..., 2:] / _CENTRE_SCALE
    sizes = (boxes[..., 2:].clamp(min=_LEAST_SIZE) / priors[..., 2:]).log() / _SIZE_SCALE
    return torch.cat((centres, sizes), -1)


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """The reverse of :func:`encode`: (N, M, 4), (M, 4) -> (N, M, 4)."""
    centres = priors[:, :2] + offsets[..., :2] * _CENTRE_SCALE * priors[:, 2:]
    sizes = priors[:, 2:] * (offsets[..., 2:] * _SIZE_SCALE).clamp(max=MOST_GROWTH).exp()
    return torch.cat((centres, sizes), -1)


@torch.no_grad()
def match(batch: Batch, priors: Tensor) -> Match:
    """Matches each box with the anchor that overlaps it most, and with all that overlap it by more than half.

    An anchor that could have several boxes gets the one it is the best anchor of, then the one it overlaps most, then
    the first. An anchor with more than half its area in an ignored box, and no box of its own, is not background.

    Args:
        batch: the boxes, (N, T, 4).
        priors: (M, 4), centre x, centre y, width, height in pixels.

    Paper: Liu et al., SSD, arXiv 1512.02325, section 2.2.
    """
    anchors = to_corners(priors)[None]
    overlaps = pairwise_iou(batch.boxes, anchors)
    best = F.one_hot(overlaps.argmax(-1), len(priors))
    merits = (overlaps + 2 * best).masked_fill(~batch.wanted[..., None], -1)
    merit, truth = merits.max(1)
    positive = merit > _MATCH
    covered = (pairwise_cover(anchors, batch.boxes) > _IN_IGNORED) & batch.ignored[:, None]
    return Match(positive, truth, ~positive & ~covered.any(-1))


def ssd_losses(logits: Tensor, offsets: Tensor, priors: Tensor, batch: Batch, matched: Match) -> dict[str, Tensor]:
    """Losses of a batch, each summed over its anchors and divided by how many have a box (at least one an image).

    Args:
        logits: float32 (N, M, classes + 1); the last is background.
        offsets: float32 (N, M, 4).
        priors: (M, 4).
        batch: what is to be found.
        matched: what each anchor has to find.

    Returns:
        ``"box"``: smooth L1 of the offsets; ``"classes"``: cross-entropy of anchors with a box and of the three times
        as many others of the image that are most mistaken (three where there is no box).

    Paper: Liu et al., SSD, arXiv 1512.02325, section 2.2.
    """
    count = max(int(matched.positive.sum()), len(logits))
    boxes = _of_truth(to_centres(batch.boxes), matched.truth)
    positive = matched.positive
    wanted = encode(boxes, priors)[positive]
    labels = batch.labels.gather(1, matched.truth).where(positive, logits.shape[-1] - 1)
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return {
        "box": F.smooth_l1_loss(offsets[positive], wanted.to(offsets), reduction="sum") / count,
        "classes": entropy[positive | _hardest(entropy.detach(), matched)].sum() / count,
    }


def _of_truth(boxes: Tensor, truth: Tensor) -> Tensor:
    """The box of each anchor: (N, T, 4), (N, M) -> (N, M, 4)."""
    return boxes.gather(1, truth[..., None].expand(-1, -1, 4))


def _hardest(losses: Tensor, matched: Match) -> Tensor:
    """Of each image's negatives those with the largest losses: (N, M)."""
    number = (_NEGATIVES * matched.positive.sum(1)).clamp(min=_NEGATIVES)
    order = losses.masked_fill(~matched.negative, -1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return matched.negative & (rank < number[:, None])
