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

# What may be wrong with annotations, and what becomes of it.
KINDS = {
    "clipped": "boxes that reach out of their image, clipped",
    "outside": "boxes outside their image, skipped",
    "no_area": "boxes without area, skipped",
    "not_finite": "boxes with a coordinate that is not finite, skipped",
    "malformed": "boxes that lack something, have an unknown flag or are not four numbers, skipped",
    "unknown_class": "boxes of a class that is not listed, skipped",
    "unknown_image": "boxes of an image that is not listed, skipped",
    "repeated_box": "boxes that are there twice, kept: of two only one can be found",
    "repeated_image": "images that are listed twice, kept",
    "trained_on": "validation images that are training images too, kept",
    "turned": "images turned upright as their camera says, with boxes taken to be drawn on the upright image",
}
# COCO rounds to hundredths of a pixel; what reaches out by less is cut off without a word.
_SLACK = 0.02


class Skipped:
    """What was left out, mended or doubtful, counted by kind (see `KINDS`), with the first example of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one; the example is kept if it is the first of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, example)

    def lines(self) -> list[str]:
        """One line for each kind, for people; empty if every box was used as it is."""
        return [f"{KINDS[kind]}: {count:,} (first: {self.examples[kind]})" for kind, count in self.counts.items()]

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
        self._seen: set[int] = set()  # hashes of boxes, since the boxes of COCO themselves would take 200 MB

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
        key = hash((image, label, *inside))
        if key in self._seen:
            self.skipped.add("repeated_box", where)
        self._seen.add(key)
        self._images.append(image)
        self._corners.append(inside)
        self._labels.append(label)
        self._ignore.append(ignore)
        return None

    def boxes(self, name: str, remedy: str = "Repair the annotations.") -> Boxes:
        """Everything that was taken.

        Raises:
            DataError: that is nothing, or nothing that is to be found; ``name`` says where it was looked for.
        """
        if all(self._ignore):
            crowds = [f"crowds and difficult objects, which are not to be found: {len(self._ignore):,}"]
            why = "; ".join((crowds if self._ignore else []) + self.skipped.lines()) or "it has none"
            raise DataError(f"{name}: no image has a box that can be used: {why}. {remedy}")
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
