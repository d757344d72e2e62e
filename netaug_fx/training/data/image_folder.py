"""Images in folders: one sub-folder for each class, below ``train`` and ``val`` or directly below the root.

Images are decoded with Pillow, resized so that the shorter side fits, and cropped to the central square. Small sets
are decoded once, when they are opened; large ones when a batch needs them, after a look at every file's header.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from netaug_fx.errors import DataError
from netaug_fx.training.data.split import stratified_split

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IN_MEMORY_BYTES = 512 * 2**20
LAYOUT = "Expected FOLDER/<class>/<image>, or FOLDER/train/<class>/<image> and FOLDER/val/<class>/<image>."


class FolderImages:
    """Images of one size, read from files.

    Attributes:
        files: the image files.
        labels: int64 ``[n]``, the class of each.
        side: height and width in pixels.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], side: int) -> None:
        """Decode all files if they fit into memory, else only look at their headers.

        Raises:
            DataError: a file cannot be read as an image; the message names it.
        """
        self.files = list(files)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.side = side
        self._decoded: Tensor | None = None
        if len(self.files) * 3 * side * side <= IN_MEMORY_BYTES:
            self._decoded = torch.stack([decode(file, side) for file in self.files])
        else:
            for file in self.files:
                _check_header(file)

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, 3, side, side]``."""
        if self._decoded is not None:
            return self._decoded[torch.as_tensor(indices)]
        return torch.stack([decode(self.files[index], self.side) for index in indices])

    @classmethod
    def open(
        cls, root: Path, side: int, val_fraction: float, seed: int
    ) -> tuple[FolderImages, FolderImages, tuple[str, ...]]:
        """Training images, validation images and class names of a folder.

        Raises:
            DataError: the folder is empty, has one class, a class has no image, or a file cannot be read.
        """
        train_root = root / "train" if (root / "train").is_dir() else root
        classes = _class_names(train_root)
        files, labels = _collect(train_root, classes, all_classes=True)
        if train_root != root and (root / "val").is_dir():
            strangers = sorted({folder.name for folder in _folders(root / "val")} - set(classes))
            if strangers:
                raise DataError(
                    f"{root / 'val'} has classes that {train_root} has not: {', '.join(strangers[:5])}. "
                    "Both folders need the same class sub-folders."
                )
            val_files, val_labels = _collect(root / "val", classes, all_classes=False)
            return cls(files, labels, side), cls(val_files, val_labels, side), classes
        train, val = stratified_split(labels, val_fraction, seed)
        if not val:
            raise DataError(f"{train_root}: every class has a single image, so none can be held out. Add images.")
        parts = [cls([files[i] for i in part], [labels[i] for i in part], side) for part in (train, val)]
        return parts[0], parts[1], classes


def decode(file: Path, side: int) -> Tensor:
    """One image as uint8 ``[3, side, side]``: upright, RGB, resized and cropped to the central square.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (side, side), method=Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _broken(file, error) from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def _check_header(file: Path) -> None:
    try:
        with Image.open(file):
            pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _broken(file, error) from None


def _broken(file: Path, error: Exception) -> DataError:
    return DataError(f"image {file} cannot be read: {error}. Repair it, or take it out of the folder.")


def _class_names(root: Path) -> tuple[str, ...]:
    classes = tuple(folder.name for folder in _folders(root))
    if not classes:
        raise DataError(f"{root} has no class sub-folders. {LAYOUT}")
    if len(classes) == 1:
        raise DataError(f"{root} has one class, {classes[0]!r}; telling classes apart needs at least two. {LAYOUT}")
    return classes


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _collect(root: Path, classes: Sequence[str], *, all_classes: bool) -> tuple[list[Path], list[int]]:
    """All image files below each class's folder, in the order of their names."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(file for file in (root / name).rglob("*") if file.suffix.lower() in EXTENSIONS)
        if not found and all_classes:
            raise DataError(f"{root / name} holds no image. {LAYOUT} Endings read: {', '.join(sorted(EXTENSIONS))}.")
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{root} holds no image. {LAYOUT}")
    return files, labels
