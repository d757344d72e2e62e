"""Photographs with boxes, decoded when they are needed: what COCO and VOC have in common."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from netaug_fx.errors import DataError
from netaug_fx.training.data import pictures
from netaug_fx.training.data.pictures import Files, in_colour, read_picture
from netaug_fx.training.data.task import IMAGENET_MEAN, IMAGENET_STD
from netaug_fx.training.detection.annotations import Boxes, Skipped, Target
from netaug_fx.training.detection.changes import detection_changes
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.detection.detection_task import DetectionTask

# What detectors of the YOLO family are usually trained at.
SIDE = 416

_ORIENTATION = 0x0112  # Exif 2.32

# No format of images goes further, nor does arithmetic of whole numbers in arrays.
LARGEST_SIDE = 2**31 - 1

Size = tuple[int, int]


class AnnotatedImages:
    """Image files with their boxes.

    Attributes:
        skipped: boxes that were left out or mended.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[Size], boxes: Boxes, skipped: Skipped, name: str) -> None:
        """Look that every file exists and, unless there are very many, that its header fits the annotations.

        Args:
            paths: The images.
            sizes: Width and height of each in pixels, as annotated.
            boxes: The boxes of each, in pixels.
            skipped: What was left out of them.
            name: What to call the set in errors.

        Raises:
            DataError: images are missing, or one cannot be read or has another size; names them.
        """
        self.skipped, self._boxes = skipped, boxes
        self._files, self._sizes = Files(paths), np.array(sizes, dtype=np.int64).reshape(-1, 2)
        _need_files(paths, name)
        for path in (path for path, count in Counter(paths).items() if count > 1):
            skipped.add("repeated_image", path.name)
        for index in range(len(self) if len(self) <= pictures.CHECKED_FILES else 0):
            if _is_turned(self._read(index, decode=False), self._size(index)):
                skipped.add("turned", self.name(index))

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The name of an image's file."""
        return self._files.path(index).name

    def target(self, index: int, epoch: int = 0) -> Target:
        """The boxes of an image in its own pixels."""
        return self._boxes.target(index)

    def samples(self, indices: Sequence[int], epoch: int = 0) -> list[tuple[Tensor, Target]]:
        """Images at their own size, uint8 ``[3, height, width]``, with their boxes.

        Raises:
            DataError: an image cannot be read, or has another size than annotated; names it.
        """
        return [(_pixels(self._read(index)), self.target(index)) for index in indices]

    def paths(self) -> set[Path]:
        """The files of all images."""
        return {self._files.path(index) for index in range(len(self))}

    def _size(self, index: int) -> Size:
        width, height = self._sizes[index].tolist()
        return width, height

    def _read(self, index: int, *, decode: bool = True) -> Image.Image:
        path = self._files.path(index)
        convert = functools.partial(_as_annotated, size=self._size(index), path=path, decode=decode)
        return read_picture(path, str(path), convert)


def _is_turned(image: Image.Image, size: Size) -> bool:
    """Whether an image of that annotated size is turned although its boxes might be drawn on it as it lies in the
    file, for that has the same size."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    return 2 <= orientation <= 8 and (orientation <= 4 or size[0] == size[1])


def _as_annotated(image: Image.Image, *, size: Size, path: Path, decode: bool) -> Image.Image:
    """An image as RGB, turned as its camera says unless the boxes were drawn on it as it lies in the file."""
    found = image.size
    # Orientations from 5 on swap height and width.
    upright = found[::-1] if image.getexif().get(_ORIENTATION, 1) >= 5 else found
    if size not in (upright, found):
        raise DataError(
            f"image {path} has {found[0]} x {found[1]} pixels, but its annotations are for {size[0]} x {size[1]}, so "
            "its boxes cannot be right. Take the image that was annotated, or correct the size with the boxes."
        )
    if not decode:
        return image
    return in_colour(ImageOps.exif_transpose(image) if size == upright else image)


def _need_files(paths: Sequence[Path], name: str) -> None:
    """Look for all files at once; by listing folders, since a hundred thousand questions take long on a network."""
    listed = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in paths}}
    missing = [path for path in paths if path.name not in listed[path.parent]]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{name}: {len(missing):,} of {len(paths):,} annotated images are missing: {shown}. Put them there, or "
            "take them out of the annotations."
        )


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def annotated_task(
    config: DetectionDataConfig, train: AnnotatedImages, val: AnnotatedImages, classes: Sequence[str]
) -> DetectionTask:
    """A task of photographs.

    Raises:
        DataError: torchvision is asked for and not installed.
    """
    for path in sorted(train.paths() & val.paths()):
        val.skipped.add("trained_on", path.name)
    side = config.image_size or SIDE
    return DetectionTask(
        name=config.name,
        train=train,
        val=val,
        classes=tuple(classes),
        channels=3,
        image_size=side,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        changes=detection_changes(config, side, IMAGENET_MEAN, flip=True),
    )
