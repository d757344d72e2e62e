"""From the name of a data set to its images: the registry behind ``--data``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from netaug_fx.errors import DataError
from netaug_fx.training.data import digits, glyphs, hugging_face, image_folder, torchvision_sets, web_shards
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.task import Task

Loader = Callable[[DataConfig, int], Task]

LOADERS: dict[str, Loader] = {
    "digits": digits.load_digit_images,
    "glyphs": glyphs.load_glyphs,
    "imagefolder": image_folder.load_image_folder,
    "imagenet": image_folder.load_imagenet,
    "imagenet21k_p": image_folder.load_imagenet21k_p,
    **torchvision_sets.LOADERS,
}

# What stands after the colon is the loader's own affair.
PREFIXES: dict[str, Loader] = {
    "hf:": hugging_face.load_hugging_face,
    "wds:": web_shards.load_web_shards,
}

WITH_BOXES = ("scenes", "coco", "voc")
"""Names that ``--task detect`` knows."""

# Small squares keep their own size; photographs take the size that the net was made for.
_SIDES = {"digits": digits.SIDE, "glyphs": glyphs.SIDE, "cifar10": 32, "cifar100": 32}

# Settings that other sets do not read, and which do.
_READ_BY = {
    "train_samples": ("glyphs", "wds:"),
    "val_samples": ("glyphs",),
    "fresh": ("glyphs",),
    "label": ("glyphs",),
    "glyphs": ("glyphs",),
    "hf_config": ("hf:",),
    "image_column": ("hf:",),
    "label_column": ("hf:",),
    "val_shards": ("wds:",),
    "num_classes": ("wds:",),
}


def own_side(name: str) -> int | None:
    """The side in pixels of a set whose images all have one small size, or None where the net may decide."""
    return _SIDES.get(name)


def load_task(config: DataConfig, seed: int) -> Task:
    """Read the data set that ``config`` names; without validation images of its own, split each class by ``seed``.

    Raises:
        DataError: the name is unknown, a setting has no meaning for that set, or the set is missing, incomplete, of
            one class, or cannot be read.
    """
    if config.dir is not None and (config.name in ("digits", "glyphs") or Path(config.name).is_dir()):
        raise DataError(
            f"--data-dir {config.dir} would not be read: --data is {config.name}, which needs none. Give --data "
            f"{config.dir} if there is one sub-folder of images for each class, or the name of the set that lies there."
        )
    _refuse_unread(config)
    if config.name in LOADERS:
        return LOADERS[config.name](config, seed)
    for prefix, load in PREFIXES.items():
        if config.name.startswith(prefix):
            return load(config, seed)
    root = Path(config.name)
    if root.is_dir():
        return image_folder.load_folder(root, config, seed)
    raise _unknown(config.name)


def _refuse_unread(config: DataConfig) -> None:
    """A setting without effect is a slip: of its name, or of the set's."""
    kind = next((prefix for prefix in PREFIXES if config.name.startswith(prefix)), config.name)
    known = kind in PREFIXES or kind in LOADERS or Path(config.name).is_dir()
    for name, readers in _READ_BY.items():
        if known and kind not in readers and getattr(config, name) != DataConfig.model_fields[name].default:
            raise DataError(
                f"data.{name} would not be read: it is for --data {' and '.join(readers)} alone, and --data is "
                f"{config.name}. Leave it away."
            )


def _unknown(name: str) -> DataError:
    known = [*LOADERS, *(f"{prefix}..." for prefix in PREFIXES)]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    if name in WITH_BOXES:
        hint = "It has boxes: give --task detect. "
    return DataError(
        f"--data {name}: there is no such folder, and no data set of that name. {hint}"
        f"Give a folder with one sub-folder of images for each class, or one of: {', '.join(map(repr, known))}."
    )
