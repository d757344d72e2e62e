"""What is done to images between the data set and the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.training.data.config import DataConfig


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, as parts of their side: ``shift``, ``zoom`` in and out, ``flip``."""

    shift: float
    zoom: float
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change float images ``[n, c, s, s]`` by one bilinear resampling; outside the image its border repeats."""
        if not (self.shift or self.zoom or self.flip):
            return images
        n = images.shape[0]
        draw = torch.rand(n, 4, generator=generator)
        scale = 1 + self.zoom * (2 * draw[:, 0] - 1)
        # Coordinates run from -1 to 1, so one side is 2 units long.
        move = 2 * self.shift * (2 * draw[:, 1:3] - 1)
        mirror = torch.where(draw[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones(n)
        affine = torch.zeros(n, 2, 3)
        affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = scale * mirror, scale, move
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augmentation(config: DataConfig, *, shift: float, zoom: float, flip: bool) -> Augmentation:
    """The changes that ``config`` asks for; what it leaves unset is as given."""
    return Augmentation(
        shift=shift if config.shift is None else config.shift,
        zoom=zoom if config.zoom is None else config.zoom,
        flip=flip if config.flip is None else config.flip,
    )


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels ``[n, channels, side, side]`` of 0 to 255 as the net sees them: ``(pixels / 255 - mean) / std``."""
    channelwise = (1, -1, 1, 1)
    return (pixels.float() / 255 - torch.tensor(mean).view(channelwise)) / torch.tensor(std).view(channelwise)
