"""The boxes of many images: how they are kept, and how those that cannot be used are counted instead of lost.

A target is one image's boxes: ``boxes`` float32 ``[n, 4]``, corners x1, y1, x2, y2 in pixels; ``labels`` int64 ``[n]``;
``ignore`` bool ``[n]``, true for what is neither to be found nor to count as background (COCO's crowds, VOC's difficult
objects). n may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from netaug_fx.errors import DataError

Target = dict[str, Tensor]

# What is wrong with boxes, and what becomes of them.
KINDS = {
    "clipped": "reach out of their image and were clipped",
    "outside": "lie outside their image and were skipped",
    "no_area": "have no area and were skipped",
    "not_finite": "have a coordinate that is not finite and were skipped",
    "malformed": "lack something or are not four numbers and were skipped",
    "unknown_class": "are of a class that is not listed and were skipped",
    "unknown_image": "are of an image that is not listed and were skipped",
}
# COCO rounds to hundredths of a pixel; what reaches out by less is cut off without a word.
_SLACK = 0.02


class Skipped:
    """Boxes that were left out, or mended, counted by kind (see `KINDS`), with the first example of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one; the example is kept if it is the first of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, example)

    def lines(self) -> list[str]:
        """One line for each kind, for people; empty if every box was used as it is."""
        return [
            f"{count:,} {'box' if count == 1 else 'boxes'}: {KINDS[kind]} (first: {self.examples[kind]})"
            for kind, count in self.counts.items()
        ]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """``count``, ``what`` and ``example`` by kind, as JSON values."""
        return {
            kind: {"count": count, "what": KINDS[kind], "example": self.examples[kind]}
            for kind, count in self.counts.items()
        }


class Boxes:
    """The boxes of many images in one block, since COCO has nearly a million; `target` gives those of one."""

    def __init__(self, images: Sequence[int], targets: Target, count: int) -> None:
        """Sort the boxes of ``targets`` by their images, numbered from 0 to ``count`` - 1."""
        owner = torch.tensor(images, dtype=torch.int64)
        order = owner.argsort(stable=True)
        self._ends = torch.bincount(owner, minlength=count).cumsum(0).tolist()
        self._targets = {name: values[order] for name, values in targets.items()}

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def total(self) -> int:
        """How many boxes there are."""
        return len(self._targets["labels"])

    def target(self, index: int) -> Target:
        """The boxes of one image, in pixels of the image."""
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return {name: values[start : self._ends[index]].clone() for name, values in self._targets.items()}


class Collector:
    """Takes boxes one by one as annotations give them, and sorts out what cannot be used.

    Attributes:
        sizes: width and height of each image in pixels.
        skipped: what was left out or mended.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = sizes
        self.skipped = Skipped()
        self._images: list[int] = []
        self._corners: list[list[float]] = []
        self._labels: list[int] = []
        self._ignore: list[bool] = []

    def add(self, image: int, corners: Sequence[float], label: int, ignore: bool, where: str) -> None:
        """Take a box of an image by its corners; ``where`` names it, should it be the example of a kind."""
        if not all(map(math.isfinite, corners)):
            return self.skipped.add("not_finite", where)
        x1, y1, x2, y2 = corners
        if x2 <= x1 or y2 <= y1:
            return self.skipped.add("no_area", where)
        width, height = self.sizes[image]
        inside = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            return self.skipped.add("outside", where)
        if any(abs(a - b) > _SLACK for a, b in zip(inside, corners, strict=True)):
            self.skipped.add("clipped", where)
        self._images.append(image)
        self._corners.append(inside)
        self._labels.append(label)
        self._ignore.append(ignore)
        return None

    def boxes(self, name: str) -> Boxes:
        """Everything that was taken.

        Raises:
            DataError: that is nothing; ``name`` says where it was looked for.
        """
        if not self._images:
            why = "; ".join(self.skipped.lines()) or "it has none"
            raise DataError(f"{name}: no image has a box that can be used: {why}. Repair the annotations.")
        targets = make_target(self._corners, self._labels, self._ignore)
        return Boxes(self._images, targets, len(self.sizes))


def make_target(boxes: Any, labels: Any, ignore: Any = None) -> Target:
    """A target from anything that becomes tensors ``[n, 4]``, ``[n]`` and ``[n]``; without ``ignore`` none is."""
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return {
        "boxes": torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": labels,
        "ignore": torch.zeros_like(labels, dtype=torch.bool) if ignore is None else torch.as_tensor(ignore).bool(),
    }


def select(target: Target, which: Tensor) -> Target:
    """The boxes of a target at a bool mask or at indices."""
    return {name: values[which] for name, values in target.items()}
