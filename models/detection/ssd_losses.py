"""The losses of the SSDLite-style head, the matching of anchors to boxes, and how boxes are written as offsets."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.models.detection.boxes import pairwise_cover, pairwise_iou, to_centres, to_corners
from netaug_fx.models.detection.matching import Match, match
from netaug_fx.models.detection.targets import Batch

# Offsets of about one: the scale of SSD's code, which its paper does not mention.
_CENTRE_SCALE = 0.1
_SIZE_SCALE = 0.2
# No box grows by more than that from its anchor; the exponential of a large number would be infinite.
MOST_GROWTH = math.log(1000 / 16)
_LEAST_SIZE = 1.0
_OVERLAP = 0.5
# An anchor with more of its area than this in an ignored box is not background.
_IN_IGNORED = 0.5
_NEGATIVES = 3


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


def assign(batch: Batch, priors: Tensor) -> Match:
    """Gives each box to the anchor that overlaps it most, and to all that overlap it by more than half.

    A box that no anchor overlaps (without area, or outside the image) is given to none. Where two boxes want the same
    anchor, one takes the next best (:func:`~netaug_fx.models.detection.matching.match`).

    Args:
        batch: the boxes, (N, T, 4).
        priors: (M, 4), centre x, centre y, width, height in pixels.

    Paper: Liu et al., SSD, arXiv 1512.02325, section 2.2.
    """
    overlaps = pairwise_iou(batch.boxes, to_corners(priors)[None])
    return match(overlaps.masked_fill(overlaps == 0, -1), batch.wanted, _OVERLAP)


def ssd_losses(logits: Tensor, offsets: Tensor, priors: Tensor, batch: Batch, matched: Match) -> dict[str, Tensor]:
    """Losses of a batch, each summed over its anchors and divided by how many have a box (at least one an image).

    Args:
        logits: float32 (N, M, classes + 1); the last is background.
        offsets: float32 (N, M, 4).
        priors: (M, 4).
        batch: what is to be found.
        matched: which anchor has to find which box.

    Returns:
        ``"box"``: smooth L1 of the offsets; ``"classes"``: cross-entropy of anchors with a box and of the three times
        as many others of the image that are most mistaken (three where there is no box). Anchors in an ignored box are
        not among these.

    Paper: Liu et al., SSD, arXiv 1512.02325, section 2.2.
    """
    positive = matched.positive
    count = max(int(positive.sum()), len(logits))
    starts = priors.expand(len(logits), -1, -1)[positive]
    wanted = encode(to_centres(matched.of(batch.boxes)), starts)
    labels = torch.full_like(matched.truth, logits.shape[-1] - 1)
    labels[positive] = matched.of(batch.labels)
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    mistaken = _hardest(entropy.detach(), positive, ~positive & ~_excused(priors, batch))
    return {
        "box": F.smooth_l1_loss(offsets[positive], wanted.to(offsets), reduction="sum") / count,
        "classes": entropy[positive | mistaken].sum() / count,
    }


def _excused(priors: Tensor, batch: Batch) -> Tensor:
    """Anchors that lie in an ignored box: (N, M)."""
    covered = pairwise_cover(to_corners(priors)[None], batch.boxes) > _IN_IGNORED
    return (covered & batch.ignored[:, None]).any(-1)


def _hardest(losses: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Of each image's negatives those with the largest losses, three for each positive: bool (N, M)."""
    number = (_NEGATIVES * positive.sum(1)).clamp(min=_NEGATIVES)
    order = losses.masked_fill(~negative, -1).argsort(dim=1, descending=True, stable=True)
    return negative & (order.argsort(dim=1) < number[:, None])
