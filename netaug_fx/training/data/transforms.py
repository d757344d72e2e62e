"""What is done to images between the data set and the net.

Two kinds of training changes: a bilinear resampling of a whole batch of small squares (`Augmentation`), and the crop
and colour changes of ImageNet recipes on images at their own size (`CropAndColour`, by torchvision). What happens to an
image depends only on (seed, epoch, index), however batches, worker processes and ranks are made up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.counters import key_of, uniform

Picture = Image.Image | Tensor
"""One image at its own size: RGB of Pillow, or uint8 ``[channels, height, width]``."""


class Source(Protocol):
    """What changes ask of a data set."""

    def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, channels, side, side]``."""
        ...

    def picture(self, index: int, epoch: int = 0) -> Picture:
        """The image at ``index`` at its own size."""
        ...


class Changes(Protocol):
    """Training images after random changes."""

    def __call__(self, source: Source, indices: Sequence[int], *, seed: int, epoch: int) -> Tensor:
        """The images at ``indices`` changed, ``[n, channels, side, side]``, values from 0 to 255."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, as parts of their side: ``shift``, ``zoom`` in and out, ``flip``."""

    shift: float
    zoom: float
    flip: bool

    def __call__(self, source: Source, indices: Sequence[int], *, seed: int, epoch: int) -> Tensor:
        """The images at ``indices`` moved, zoomed and mirrored, float ``[n, channels, side, side]``."""
        images = source.images(indices, epoch).float()
        return self.move(images, uniform(key_of(seed, epoch), torch.as_tensor(indices), 4))

    def move(self, images: Tensor, draw: Tensor) -> Tensor:
        """Change float images ``[n, c, s, s]`` by one bilinear resampling; outside the image its border repeats.

        ``draw [n, 4]`` holds numbers from [0, 1): zoom, move to the side, move down, mirror.
        """
        if not (self.shift or self.zoom or self.flip):
            return images
        scale = 1 + self.zoom * (2 * draw[:, 0] - 1)
        # Coordinates run from -1 to 1, so one side is 2 units long.
        move = 2 * self.shift * (2 * draw[:, 1:3] - 1)
        mirror = torch.where(draw[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones(len(draw))
        zero = torch.zeros_like(scale)
        rows = [torch.stack([scale * mirror, zero, move[:, 0]], 1), torch.stack([zero, scale, move[:, 1]], 1)]
        grid = sampling_grid(torch.stack(rows, 1), images.shape[-1])
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class CropAndColour:
    """A random part of an image, resized to ``side``; mirrored; brighter or darker; more or less colourful.

    The changes of the ImageNet recipes (Szegedy et al., CVPR 2015, for the crop), by ``torchvision.transforms.v2``.
    """

    side: int
    crop_scale: tuple[float, float] | None
    flip: bool
    brightness: float
    saturation: float

    def __call__(self, source: Source, indices: Sequence[int], *, seed: int, epoch: int) -> Tensor:
        """The images at ``indices`` changed one by one, uint8 ``[n, channels, side, side]``."""
        return torch.stack([self._changed(source.picture(i, epoch), key_of(seed, epoch, i)) for i in indices])

    def _changed(self, picture: Picture, key: int) -> Tensor:
        # Only the CPU's generator: torch.manual_seed would also seed an accelerator's, which fork_rng([]) leaves alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            changed: Tensor = self._pipeline(picture)
        return changed.as_subclass(Tensor)

    @functools.cached_property
    def _pipeline(self) -> Callable[[Picture], Tensor]:
        v2 = torchvision_transforms()
        if self.crop_scale is None:
            crop = [v2.Resize(self.side), v2.CenterCrop(self.side)]
        else:
            crop = [v2.RandomResizedCrop(self.side, scale=self.crop_scale)]
        flip = [v2.RandomHorizontalFlip()] if self.flip else []
        colour = [v2.ColorJitter(brightness=self.brightness, saturation=self.saturation)]
        pipeline: Callable[[Picture], Tensor] = v2.Compose([*crop, *flip, *colour, v2.ToImage()])
        return pipeline


def torchvision_transforms() -> Any:
    """``torchvision.transforms.v2``.

    Raises:
        DataError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise DataError(
            f"data.crop_scale, data.brightness and data.saturation need torchvision ({error}): "
            "pip install 'netaug_fx[data]'. Or leave them away; data.shift, data.zoom and data.flip need nothing more."
        ) from None
    return v2


def training_changes(config: DataConfig, side: int, *, shift: float, zoom: float, flip: bool) -> Changes:
    """The changes that ``config`` asks for; what it leaves unset is as given.

    Raises:
        DataError: torchvision is asked for and not installed.
    """
    flip = flip if config.flip is None else config.flip
    if config.needs_torchvision:
        torchvision_transforms()
        return CropAndColour(side, config.crop_scale, flip, config.brightness, config.saturation)
    return Augmentation(
        shift=shift if config.shift is None else config.shift,
        zoom=zoom if config.zoom is None else config.zoom,
        flip=flip,
    )


def sampling_grid(affine: Tensor, side: int) -> Tensor:
    """Where each pixel of ``[n, c, side, side]`` comes from, for ``grid_sample``: ``[n, side, side, 2]``.

    ``affine [n, 2, 3]`` as in ``torch.nn.functional.affine_grid``, which multiplies matrices and may so round by batch
    size; here a pixel's place is the same in any batch.
    """
    line = (torch.arange(side, device=affine.device) * 2 + 1) / side - 1
    a = affine[:, None, None]
    return a[..., 0] * line[None, None, :, None] + a[..., 1] * line[None, :, None, None] + a[..., 2]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels ``[n, channels, side, side]`` of 0 to 255 as the net sees them: ``(pixels / 255 - mean) / std``."""
    channelwise = (1, -1, 1, 1)
    return (pixels.float() / 255 - torch.tensor(mean).view(channelwise)) / torch.tensor(std).view(channelwise)
