"""Batches of images with boxes, in the order of `EpochOrder`: a run can go on in the middle of an epoch.

What happens to an image depends only on (seed, epoch, index), with any number of worker processes.

Validation targets carry ``size``, the image's own height and width, beside their boxes in pixels of the net's input.
With `to_own_size` detections and targets are both judged at the image's own size: COCO's sizes (small, medium, large)
are defined there, and figures taken at several input resolutions can be compared.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from netaug_fx.training.data.counters import key_of
from netaug_fx.training.data.loaders import EpochOrder, loader_of, require_one_batch
from netaug_fx.training.detection.changes import squared
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.detection.detection_task import DetectionBatch, DetectionTask


class _Training(Dataset[DetectionBatch]):
    """Turns lists of indices into changed, normalised batches."""

    def __init__(self, task: DetectionTask, order: EpochOrder) -> None:
        self.task, self.order = task, order

    def __len__(self) -> int:
        return len(self.task.train)

    def __getitem__(self, index: int) -> DetectionBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> DetectionBatch:
        seed, epoch = self.order.seed, self.order.epoch
        samples = self.task.train.samples(indices, epoch)
        changed = [
            self.task.changes(picture, target, key_of(seed, epoch, index))
            for index, (picture, target) in zip(indices, samples, strict=True)
        ]
        return self.task.normalised([image for image, _ in changed]), [target for _, target in changed]


class _Validation(Dataset[DetectionBatch]):
    """Turns lists of indices into normalised batches, whose targets say how large the images are."""

    def __init__(self, task: DetectionTask) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.val)

    def __getitem__(self, index: int) -> DetectionBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> DetectionBatch:
        images, targets = [], []
        for picture, target in self.task.val.samples(indices):
            image, target = squared(picture, target, self.task.image_size)
            images.append(image)
            targets.append({**target, "size": torch.tensor(picture.shape[-2:])})
        return self.task.normalised(images), targets


def make_loaders(
    task: DetectionTask, config: DetectionDataConfig, seed: int
) -> tuple[DataLoader[DetectionBatch], EpochOrder, DataLoader[DetectionBatch]]:
    """Loaders for training and validation, and the order of the first, whose ``epoch`` and ``start`` the loop sets.

    Batches are normalised images ``[n, channels, side, side]`` and a list of targets in their pixels; see the head of
    this file for what validation targets have besides. Under several processes ``start`` counts as for classification.

    Raises:
        DataError: there are fewer training images than one batch holds.
    """
    require_one_batch(task.name, len(task.train), config.batch_size)
    order = EpochOrder(len(task.train), config.batch_size, seed)
    train = loader_of(_Training(task, order), config.workers, batch_sampler=order)
    return train, order, loader_of(_Validation(task), config.workers, batch_size=max(config.batch_size, 32))
