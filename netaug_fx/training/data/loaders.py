"""Batches in an order that follows from seed and epoch, so that a run can go on in the middle of an epoch.

What happens to an image depends only on (seed, epoch, place in the epoch), so a run that is resumed in the middle of an
epoch sees exactly what the uninterrupted run saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.task import Batch, ImageSource, Task
from netaug_fx.training.data.transforms import normalise


class EpochOrder(Sampler[list[int]]):
    """Lists of indices, one for each batch, in an order that depends on nothing but (seed, epoch).

    `start` of them are left out at the front, which is how a run resumes in the middle of an epoch. The last batch is
    dropped where it is not full: batch norms cannot train on a single image.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch = 0
        self.start = 0
        self.drop_last = True  # read by accelerate when it shares batches out among processes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator)
        for batch in range(self.start, self.length // self.batch_size):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return self.length // self.batch_size - self.start


class _Batches(Dataset[Batch]):
    """Turns lists of indices into batches the net can take; ``augmentation`` None leaves the images as they are."""

    def __init__(self, source: ImageSource, task: Task, order: EpochOrder | None) -> None:
        self.source, self.task, self.order = source, task, order

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        images = normalise(self.source.images(indices), self.task.mean, self.task.std)
        if self.order is not None:
            # The first index makes batches of one epoch differ without counting them, also in worker processes.
            seed = (self.order.seed * 1_000_003 + self.order.epoch) * 1_000_003 + indices[0]
            images = self.task.augmentation(images, torch.Generator().manual_seed(seed % 2**63))
        return images, self.source.labels[torch.as_tensor(indices)]


def make_loaders(task: Task, config: DataConfig, seed: int) -> tuple[DataLoader[Batch], EpochOrder, DataLoader[Batch]]:
    """Loaders for training and validation, and the order of the first, whose ``epoch`` and ``start`` the loop sets.

    Raises:
        DataError: there are fewer training images than one batch holds.
    """
    if len(task.train.labels) < config.batch_size:
        raise DataError(
            f"data set {task.name}: {len(task.train.labels)} training images do not fill one batch of "
            f"{config.batch_size}. Lower data.batch_size (--batch-size) or add images."
        )
    order = EpochOrder(len(task.train.labels), config.batch_size, seed)
    # Generators of their own: a loader would otherwise draw from torch's global one, which dropout uses.
    train: DataLoader[Batch] = DataLoader(
        _Batches(task.train, task, order),
        batch_sampler=order,
        collate_fn=_already_collated,
        num_workers=config.workers,
        generator=torch.Generator(),
    )
    val: DataLoader[Batch] = DataLoader(
        _Batches(task.val, task, None),
        batch_size=max(config.batch_size, 256),
        collate_fn=_already_collated,
        num_workers=config.workers,
        generator=torch.Generator(),
    )
    return train, order, val


def _already_collated(batch: Any) -> Any:
    return batch
