"""Images in folders: one sub-folder for each class, below ``train`` and ``val`` or directly below the root.

ImageNet-1k and ImageNet-21K-P are such folders too, with names of their own.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.locations import need_folder
from netaug_fx.training.data.pictures import Files, Reader, picture_task
from netaug_fx.training.data.split import TRAINING_PARTS, VALIDATION_PARTS, stratified_split
from netaug_fx.training.data.task import Task

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LAYOUT = "Expected FOLDER/<class>/<image>, or FOLDER/train/<class>/<image> and FOLDER/val/<class>/<image>."

Part = tuple[Files, list[int]]


def load_image_folder(config: DataConfig, seed: int) -> Task:
    """``--data imagefolder --data-dir FOLDER``.

    Raises:
        DataError: the folder is missing, empty, has one class, a class has no image, or a file cannot be read.
    """
    return load_folder(need_folder(config, LAYOUT), config, seed)


def load_folder(root: Path, config: DataConfig, seed: int) -> Task:
    """Images of a folder; without ``val`` (or ``valid``, ``validation``, ``test``) a part of each class is held out.

    Raises:
        DataError: the folder is empty, has one class, a class has no image, or a file cannot be read.
    """
    val_root = next((root / name for name in VALIDATION_PARTS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and val_root is not None:
        return _two_folders(config, str(root), root / "train", val_root)
    train_root = root / "train" if (root / "train").is_dir() else root
    _refuse_parts_as_classes(root, train_root)
    classes = _class_names(train_root)
    files, labels = _collect(train_root, classes, all_classes=True)
    train, val = stratified_split(labels, config.val_fraction, seed)
    if not val:
        raise DataError(f"{train_root}: every class has a single image, so none can be held out. Add images.")
    parts: list[tuple[Reader, list[int]]] = [(files.select(part), [labels[i] for i in part]) for part in (train, val)]
    return picture_task(config, str(root), parts[0], parts[1], classes)


def _refuse_parts_as_classes(root: Path, train_root: Path) -> None:
    """Parts of a data set under other names would be trained on as classes, or not be seen.

    Raises:
        DataError: a folder is named like a part, and holds folders alone.
    """
    for folder in _folders(root):
        is_part = folder.name.lower() in (*TRAINING_PARTS, *VALIDATION_PARTS) and not folder.samefile(train_root)
        if is_part and not any(entry.is_file() for entry in folder.iterdir() if not entry.name.startswith(".")):
            raise DataError(
                f"{folder} looks like a part of the data set, and no class: it holds folders alone. The parts must be "
                f"named train and {' or '.join(VALIDATION_PARTS)}, both. {LAYOUT}"
            )


def load_imagenet(config: DataConfig, seed: int) -> Task:
    """ImageNet-1k (ILSVRC 2012), unpacked into a folder for each class, as torchvision's `ImageNet` leaves it too.

    Raises:
        DataError: a folder is missing or empty, or a file cannot be read.
    """
    layout = (
        "Expected DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG. Get ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org (needs an account), put them into "
        "DIR, and let torchvision unpack both parts: torchvision.datasets.ImageNet(DIR, split='train') and 'val'."
    )
    root = need_folder(config, layout, "train", "val")
    task = _two_folders(config, "imagenet", root / "train", root / "val")
    names = _imagenet_names(root / "meta.bin")
    return task if names is None else _renamed(task, names)


def load_imagenet21k_p(config: DataConfig, seed: int) -> Task:
    """ImageNet-21K-P, the processed ImageNet-21k (Ridnik et al., NeurIPS 2021 Datasets track).

    Raises:
        DataError: a folder is missing or empty, or a file cannot be read.
    """
    layout = (
        "Expected DIR/imagenet21k_train/<wnid>/* and DIR/imagenet21k_val/<wnid>/*. The processed set is offered by "
        "image-net.org (needs an account), as winter21_whole after the scripts of github.com/Alibaba-MIIL/ImageNet21K."
    )
    root = need_folder(config, layout, "imagenet21k_train", "imagenet21k_val")
    return _two_folders(config, "imagenet21k_p", root / "imagenet21k_train", root / "imagenet21k_val")


def _two_folders(config: DataConfig, name: str, train_root: Path, val_root: Path) -> Task:
    classes = _class_names(train_root)
    strangers = sorted({folder.name for folder in _folders(val_root)} - set(classes))
    if strangers:
        raise DataError(
            f"{val_root} has classes that {train_root} has not: {', '.join(strangers[:5])}. "
            "Both folders need the same class sub-folders."
        )
    train = _collect(train_root, classes, all_classes=True)
    val = _collect(val_root, classes, all_classes=False)
    return picture_task(config, name, train, val, classes)


def _imagenet_names(file: Path) -> dict[str, str] | None:
    """The words for each wnid, where torchvision has left them beside the folders."""
    if not file.is_file():
        return None
    try:
        words: dict[str, tuple[str, ...]] = torch.load(file, weights_only=True)[0]
        return {wnid: names[0] for wnid, names in words.items()}
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not the file of class names that torchvision writes ({error}). Delete it; "
            "torchvision.datasets.ImageNet makes it anew, and without it the wnids are the names."
        ) from None


def _renamed(task: Task, names: dict[str, str]) -> Task:
    return replace(task, classes=tuple(names.get(wnid, wnid) for wnid in task.classes))


def _class_names(root: Path) -> tuple[str, ...]:
    classes = tuple(folder.name for folder in _folders(root))
    if not classes:
        raise DataError(f"{root} has no class sub-folders. {LAYOUT}")
    if len(classes) == 1:
        raise DataError(f"{root} has one class, {classes[0]!r}; telling classes apart needs at least two. {LAYOUT}")
    return classes


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _collect(root: Path, classes: Sequence[str], *, all_classes: bool) -> Part:
    """All image files below each class's folder, in the order of their names."""
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.path.join(folder, file)
            for folder, _, names in os.walk(root / name)
            for file in names
            if os.path.splitext(file)[1].lower() in EXTENSIONS
        )
        if not found and all_classes:
            raise DataError(f"{root / name} holds no image. {LAYOUT} Endings read: {', '.join(sorted(EXTENSIONS))}.")
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{root} holds no image in a class sub-folder. {LAYOUT}")
    return Files(files), labels
