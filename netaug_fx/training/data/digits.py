"""scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.split import stratified_split
from netaug_fx.training.data.task import Task, TensorImages
from netaug_fx.training.data.transforms import augmentation


def load_digit_images(config: DataConfig, seed: int) -> Task:
    """1,797 handwritten digits of 8 x 8 pixels and 17 grey levels (UCI ML, shipped with scikit-learn)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (torch.from_numpy(data.images).unsqueeze(1) * (255 / 16)).round()
    if config.image_size not in (None, 8):
        side = [config.image_size, config.image_size]
        pixels = F.interpolate(pixels, size=side, mode="bilinear", align_corners=False).round()
    labels = torch.from_numpy(data.target).long()
    train, val = stratified_split(labels.tolist(), config.val_fraction, seed)
    source = TensorImages(pixels.to(torch.uint8), labels)
    return Task(
        name="digits",
        train=TensorImages(source.images(train), labels[torch.as_tensor(train)]),
        val=TensorImages(source.images(val), labels[torch.as_tensor(val)]),
        classes=tuple(str(name) for name in data.target_names),
        channels=1,
        image_size=config.image_size or 8,
        # Mean and standard deviation of the whole set.
        mean=(0.305,),
        std=(0.376,),
        augmentation=augmentation(config, shift=0.1, zoom=0.1, flip=False),
    )
