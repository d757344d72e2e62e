"""A data set made ready for training: where images come from, and the shape of the problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from netaug_fx.training.data.transforms import Augmentation, normalise

Batch = tuple[Tensor, Tensor]


class ImageSource(Protocol):
    """Where images come from; they all have one size."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 ``[n]``."""
        ...

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, channels, side, side]``."""
        ...


@dataclass(frozen=True)
class TensorImages:
    """Images that are held in memory: ``pixels`` uint8 ``[n, channels, side, side]``, ``labels`` int64 ``[n]``."""

    pixels: Tensor
    labels: Tensor

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``."""
        return self.pixels[torch.as_tensor(indices)]


@dataclass(frozen=True)
class Task:
    """A data set made ready: what to train on, what to validate on, and the shape of the problem.

    ``mean`` and ``std`` have one value for each channel; a net sees ``(pixels / 255 - mean) / std``.
    """

    name: str
    train: ImageSource
    val: ImageSource
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    def example(self, batch: int = 2) -> Tensor:
        """The first validation images as the net sees them, ``[batch, channels, image_size, image_size]``."""
        indices = range(min(batch, len(self.val.labels)))
        return normalise(self.val.images(indices), self.mean, self.std)
