"""scikit-learn's handwritten digits."""

from __future__ import annotations

import torch

from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.split import stratified_split
from netaug_fx.training.data.task import Task, TensorImages
from netaug_fx.training.data.transforms import training_changes

SIDE = 8


def load_digit_images(config: DataConfig, seed: int) -> Task:
    """1,797 handwritten digits of 8 x 8 pixels and 17 grey levels (UCI ML, shipped with scikit-learn)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (torch.from_numpy(data.images).unsqueeze(1) * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(data.target).long()
    side = config.image_size or SIDE
    parts = [torch.as_tensor(part) for part in stratified_split(labels.tolist(), config.val_fraction, seed)]
    train, val = (TensorImages(pixels[part], labels[part], side) for part in parts)
    return Task(
        name="digits",
        train=train,
        val=val,
        classes=tuple(str(name) for name in data.target_names),
        channels=1,
        image_size=side,
        # Mean and standard deviation of the whole set.
        mean=(0.305,),
        std=(0.376,),
        augmentation=training_changes(config, side, shift=0.1, zoom=0.1, flip=False),
    )
