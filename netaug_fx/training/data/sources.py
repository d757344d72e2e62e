"""From the name of a data set to its images."""

from __future__ import annotations

from pathlib import Path

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.digits import load_digit_images
from netaug_fx.training.data.image_folder import FolderImages
from netaug_fx.training.data.task import Task
from netaug_fx.training.data.transforms import augmentation


def load_task(config: DataConfig, seed: int) -> Task:
    """Read the data set that ``config`` names; without a ``val`` folder, split each class by ``seed``.

    Raises:
        DataError: there is no such folder, it is empty, has one class, or a file in it cannot be read.
    """
    if config.name == "digits":
        return load_digit_images(config, seed)
    root = Path(config.name)
    if not root.is_dir():
        raise DataError(
            f"--data {config.name}: there is no such folder. "
            "Give 'digits', or a folder with one sub-folder of images for each class."
        )
    size = config.image_size or 64
    train, val, classes = FolderImages.open(root, size, config.val_fraction, seed)
    return Task(
        name=str(root),
        train=train,
        val=val,
        classes=classes,
        channels=3,
        image_size=size,
        # The channel statistics of ImageNet, which pretrained nets expect.
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation=augmentation(config, shift=0.1, zoom=0.25, flip=True),
    )
