"""A data set made ready for training: where images come from, and the shape of the problem."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.training.data.transforms import Changes, Picture, Source, normalise

Batch = tuple[Tensor, Tensor]

# The channel statistics of ImageNet, which pretrained nets expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageSource(Source, Protocol):
    """Where images come from, by index; `images` gives all of them at one size."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 ``[n]``."""
        ...

    def __len__(self) -> int:
        """How many images an epoch has."""
        ...


@runtime_checkable
class StreamSource(Protocol):
    """Where images come from that can only be read one after the other."""

    def divide(self, lanes: int) -> None:
        """Make as many parts that can be read at the same time; step k is then read from part ``k % lanes``."""
        ...

    def __len__(self) -> int:
        """How many images an epoch has."""
        ...

    def batch(self, step: int, size: int, epoch: int) -> tuple[Source, list[int], Tensor]:
        """The images of a step, the indices that name them in there, and their labels, int64 ``[size]``."""
        ...


@dataclass(frozen=True)
class TensorImages:
    """Images that are held in memory: ``pixels`` uint8 ``[n, channels, s, s]``, ``labels`` int64 ``[n]``.

    `images` resizes them to ``side`` where that is another size.
    """

    pixels: Tensor
    labels: Tensor
    side: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, channels, side, side]``."""
        return resized(self.pixels[torch.as_tensor(indices)], self.side)

    def picture(self, index: int, epoch: int = 0) -> Picture:
        """The image at ``index`` at its own size, uint8 ``[channels, s, s]``."""
        return self.pixels[index]


def resized(pixels: Tensor, side: int | None) -> Tensor:
    """uint8 images ``[n, c, s, s]`` at another size, bilinear, smoothed where they shrink."""
    if side is None or pixels.shape[-2:] == (side, side):
        return pixels
    size = [side, side]
    smooth = F.interpolate(pixels.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return smooth.round().to(torch.uint8)


class Problem(Protocol):
    """What runs ask of a data set, whatever is learnt from it: how many images there are, and of what shape.

    ``mean`` and ``std`` have one value for each channel; a net sees ``(pixels / 255 - mean) / std``.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def train(self) -> Sized:
        """The training images."""
        ...

    @property
    def val(self) -> Sized:
        """The validation images."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        ...

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel."""
        ...

    def example(self, batch: int = 2) -> Tensor:
        """The first validation images as the net sees them, ``[batch, channels, image_size, image_size]``."""
        ...

    def notes(self) -> list[str]:
        """What a user should know of the data when a run starts, one line each."""
        ...


@dataclass(frozen=True)
class Task:
    """A data set made ready: what to train on, what to validate on, and the shape of the problem.

    ``mean`` and ``std`` have one value for each channel; a net sees ``(pixels / 255 - mean) / std``.
    """

    name: str
    train: ImageSource | StreamSource
    val: ImageSource
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Changes

    def example(self, batch: int = 2) -> Tensor:
        """The first validation images as the net sees them, ``[batch, channels, image_size, image_size]``."""
        return normalise(self.val.images(range(min(batch, len(self.val)))), self.mean, self.std)

    def notes(self) -> list[str]:
        """Nothing: images that cannot be read are errors."""
        return []
