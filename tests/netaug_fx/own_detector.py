"""Detectors as a user might write them, of three convolutions; a file that ``--model`` is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Found = list[dict[str, Tensor]]


class Own(nn.Module):
    """One box a cell, as large as the image; in training a dict of losses, else scores for `detect`."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 6, 3, stride=4, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=4, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, classes, 1),
        )

    def forward(self, images: Tensor, targets: Found | None = None) -> Any:
        scores = self.body(images)
        if targets is None:
            return scores
        wanted = torch.zeros_like(scores)
        for row, target in zip(wanted, targets, strict=True):
            row[target["labels"]] = 1
        return {"one": nn.functional.binary_cross_entropy_with_logits(scores, wanted), "none": 0 * scores.sum()}

    def detect(
        self, predictions: Tensor, size: tuple[int, int], *, score_threshold: float, iou_threshold: float, limit: int
    ) -> Found:
        found = []
        for scores in predictions.sigmoid().flatten(2).amax(2):
            labels = (scores > score_threshold).nonzero().flatten()[:limit]
            boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]]).repeat(len(labels), 1)
            found.append({"boxes": boxes, "scores": scores[labels], "labels": labels})
        return found


class GivesLists(Own):
    """As torchvision's: outside training it answers with the list itself."""

    detect = None  # type: ignore[assignment]

    def forward(self, images: Tensor, targets: Found | None = None) -> Any:
        answer = super().forward(images, targets)
        if targets is not None:
            return answer
        return Own.detect(self, answer, images.shape[-2:], score_threshold=0.0, iou_threshold=1.0, limit=100)


class Choosing(GivesLists):
    """It chooses by score within its forward, so that the shapes of its outputs follow from values."""

    def forward(self, images: Tensor, targets: Found | None = None) -> Any:
        if targets is not None:
            return super().forward(images, targets)
        best = self.body(images).sigmoid().flatten(1)
        image, place = (best > 0.5).nonzero(as_tuple=True)
        scores = best[image, place]
        sizes = [int(n) for n in torch.bincount(image, minlength=len(images))]
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        return [{"boxes": boxes.repeat(len(s), 1), "scores": s, "labels": s.long()} for s in scores.split(sizes)]


def make(num_classes: int, in_channels: int) -> nn.Module:
    return Own(num_classes, in_channels)


def make_choosing(num_classes: int, in_channels: int) -> nn.Module:
    return Choosing(num_classes, in_channels)


def make_lists(num_classes: int, in_channels: int) -> nn.Module:
    return GivesLists(num_classes, in_channels)
