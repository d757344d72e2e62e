"""A data set for detection made ready for training: where images and boxes come from, and the shape of the problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from netaug_fx.training.data.transforms import normalise
from netaug_fx.training.detection.annotations import Skipped, Target
from netaug_fx.training.detection.changes import BoxChanges, squared

DetectionBatch = tuple[Tensor, list[Target]]
"""Normalised images ``[n, channels, side, side]`` and the target of each, in pixels of these images."""


class DetectionSource(Protocol):
    """Where images and their boxes come from, by index.

    Attributes:
        skipped: what was left out, mended or doubtful in the annotations, counted by kind.
    """

    skipped: Skipped

    def __len__(self) -> int:
        """How many images an epoch has."""
        ...

    def samples(self, indices: Sequence[int], epoch: int = 0) -> list[tuple[Tensor, Target]]:
        """Images at their own size, uint8 ``[channels, height, width]``, each with its target in its own pixels."""
        ...

    def target(self, index: int, epoch: int = 0) -> Target:
        """The target alone, without decoding the image."""
        ...

    def name(self, index: int) -> str:
        """What people call the image: the name of its file, where it has one."""
        ...


@dataclass(frozen=True)
class DetectionTask:
    """A data set for detection: what to train on, what to validate on, and the shape of the problem.

    A net sees squares of ``image_size`` pixels as ``(pixels / 255 - mean) / std``, with one value of ``mean`` and
    ``std`` for each channel; images are stretched to the square. ``changes`` is what is done to training images.
    """

    name: str
    train: DetectionSource
    val: DetectionSource
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    changes: BoxChanges

    def example(self, batch: int = 2) -> Tensor:
        """The first validation images as the net sees them, ``[batch, channels, image_size, image_size]``."""
        samples = self.val.samples(range(min(batch, len(self.val))))
        return self.normalised([squared(picture, target, self.image_size)[0] for picture, target in samples])

    def normalised(self, squares: Sequence[Tensor]) -> Tensor:
        """Squares of pixels from 0 to 255 as one batch, as the net sees them."""
        return normalise(torch.stack(list(squares)), self.mean, self.std)

    def notes(self) -> list[str]:
        """What was left out of the annotations, mended or doubtful, one line each, for the terminal."""
        parts = (("training", self.train), ("validation", self.val))
        return [f"{self.name}, {part} annotations: {line}" for part, source in parts for line in source.skipped.lines()]
