"""Colour images at their own size, decoded with Pillow: what all sets of photographs have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.task import IMAGENET_MEAN, IMAGENET_STD, Task
from netaug_fx.training.data.transforms import Picture, training_changes

IN_MEMORY_BYTES = 512 * 2**20
# Above this, looking at every file would delay the start by minutes; a broken one is named when its turn comes.
CHECKED_FILES = 100_000
SIDE = 64


class Reader(Protocol):
    """Reads images by index."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def __call__(self, index: int) -> Image.Image:
        """The image at ``index``: RGB, upright, at its own size.

        Raises:
            DataError: it cannot be read; the message names it.
        """
        ...

    def check(self) -> None:
        """Look whether the images can be opened, without decoding them.

        Raises:
            DataError: one cannot; the message names it.
        """
        ...


class Files:
    """Reads image files; keeps their names in one block, since ten million path objects would not fit into memory."""

    def __init__(self, files: Iterable[str | os.PathLike[str]]) -> None:
        names = [os.fsencode(file) for file in files]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._block = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> Path:
        """The file of an image."""
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) if index else 0
        return Path(os.fsdecode(self._block[start : int(self._ends[index])]))

    def select(self, indices: Iterable[int]) -> Files:
        """The files at ``indices``."""
        return Files(self.path(index) for index in indices)

    def __call__(self, index: int) -> Image.Image:
        """The image at ``index``, RGB and upright."""
        file = self.path(index)
        return read_picture(file, str(file))

    def check(self) -> None:
        """Look at the headers, unless there are very many."""
        for index in range(len(self) if len(self) <= CHECKED_FILES else 0):
            file = self.path(index)
            try:
                with Image.open(file):
                    pass
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise _broken(str(file), error) from None


def read_picture(
    file: Path | IO[bytes], name: str, convert: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """An image file as RGB and upright, or as ``convert`` makes it.

    Raises:
        DataError: it cannot be read as an image; the message calls it ``name``.
    """
    try:
        with Image.open(file) as image:
            return (convert or as_rgb)(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _broken(name, error) from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, turned as its camera says.

    Raises:
        ValueError: its pixels have no known range.
    """
    return in_colour(ImageOps.exif_transpose(image))


def in_colour(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; of 16 bits the upper eight are kept, where Pillow would cut at 255.

    Raises:
        ValueError: its pixels are 32-bit or fractional, so that white could be any number.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _broken(name: str, error: Exception) -> DataError:
    return DataError(
        f"image {name} cannot be read: {error}. Repair it, or take it out of the data set; a run that has begun wants "
        "as many images as before, so put another in its place."
    )


def square(picture: Image.Image, side: int, val_crop: float = 1.0) -> Tensor:
    """The central square of an image as uint8 ``[3, side, side]``.

    The shorter side becomes ``side / val_crop``, of which the middle is kept.
    """
    whole = max(round(side / val_crop), side)
    fitted = ImageOps.fit(picture, (whole, whole), method=Image.Resampling.BILINEAR)
    start = (whole - side) // 2
    middle = fitted.crop((start, start, start + side, start + side))
    return torch.from_numpy(np.array(middle)).permute(2, 0, 1).contiguous()


class Pictures:
    """Images with their classes, from any reader.

    Attributes:
        read: gives the images at their own size.
        labels: int64 ``[n]``, the class of each.
        side: height and width of what `images` gives, in pixels.
    """

    def __init__(
        self,
        read: Reader,
        labels: Sequence[int] | Tensor,
        side: int,
        *,
        val_crop: float = 1.0,
        hold: bool = True,
    ) -> None:
        """Decode all images if they fit into memory and ``hold`` allows it, else only look at them.

        Raises:
            DataError: one cannot be read; the message names it.
        """
        self.read, self.side, self.val_crop = read, side, val_crop
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self._held: Tensor | None = None
        if hold and len(read) * 3 * side * side <= IN_MEMORY_BYTES:
            self._held = torch.stack([square(read(index), side, val_crop) for index in range(len(read))])
        else:
            read.check()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """The central squares of the images at ``indices`` as uint8 ``[n, 3, side, side]``."""
        if self._held is not None:
            return self._held[torch.as_tensor(indices)]
        return torch.stack([square(self.read(index), self.side, self.val_crop) for index in indices])

    def picture(self, index: int, epoch: int = 0) -> Picture:
        """The image at ``index`` at its own size."""
        return self.read(index)


def picture_task(
    config: DataConfig,
    name: str,
    train: tuple[Reader, Sequence[int]],
    val: tuple[Reader, Sequence[int]],
    classes: Sequence[str],
) -> Task:
    """A task of photographs, from readers with their labels.

    Raises:
        DataError: an image cannot be read, or torchvision is asked for and not installed.
    """
    side = config.image_size or SIDE
    changes = training_changes(config, side, shift=0.1, zoom=0.25, flip=True)
    return Task(
        name=name,
        # Random crops are cut from the images at their own size, so smaller ones need not be kept.
        train=Pictures(*train, side, hold=not config.needs_torchvision),
        val=Pictures(*val, side, val_crop=config.val_crop),
        classes=tuple(classes),
        channels=3,
        image_size=side,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=changes,
    )
