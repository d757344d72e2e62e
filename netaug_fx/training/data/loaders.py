"""Batches in an order that follows from seed and epoch, so that a run can go on in the middle of an epoch.

What happens to an image depends only on (seed, epoch, index), so a run that is resumed in the middle of an epoch sees
exactly what the uninterrupted run saw, with any number of worker processes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.task import Batch, ImageSource, StreamSource, Task
from netaug_fx.training.data.transforms import normalise

B = TypeVar("B")

SECONDS_TO_SAVE = 30.0
"""For how long workers go on after they were asked to end."""


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


class PairOrder(EpochOrder):
    """Batches in which every image has another of its class, half of them in the order of the epoch.

    As many batches as without pairs, so half of the images lead a pair in each epoch.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size, seed)
        self.labels = labels

    def __iter__(self) -> Iterator[list[int]]:
        by_class = self.labels.argsort(stable=True)
        first = torch.searchsorted(self.labels[by_class], self.labels)
        count = torch.bincount(self.labels)[self.labels]
        place = torch.empty_like(by_class)
        place[by_class] = torch.arange(self.length)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator)
        ahead = torch.randint(1 << 30, (self.length,), generator=generator) % (count - 1).clamp(min=1) + 1
        partner = by_class[first + (place - first + ahead) % count]
        half, odd = divmod(self.batch_size, 2)
        for batch in range(self.start, self.length // self.batch_size):
            leading = order[batch * self.batch_size :][: half + odd]
            yield torch.cat([leading, partner[leading[:half]]]).tolist()


class StepOrder(EpochOrder):
    """The order of a stream, which has no indices: each list holds the number of a step, so ``length`` counts steps."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__(length, 1, seed)

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([step] for step in range(self.start, self.length))


class _Training(Dataset[Batch]):
    """Turns lists of indices into changed, normalised batches."""

    def __init__(self, source: ImageSource, task: Task, order: EpochOrder) -> None:
        self.source, self.task, self.order = source, task, order

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        pixels = self.task.augmentation(self.source, indices, seed=self.order.seed, epoch=self.order.epoch)
        return normalise(pixels, self.task.mean, self.task.std), self.source.labels[torch.as_tensor(indices)]


class _Streaming(Dataset[Batch]):
    """Turns numbers of steps into changed, normalised batches."""

    def __init__(self, source: StreamSource, task: Task, order: StepOrder, batch_size: int) -> None:
        self.source, self.task, self.order, self.batch_size = source, task, order, batch_size

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> Batch:
        source, indices, labels = self.source.batch(step, self.batch_size, self.order.epoch)
        pixels = self.task.augmentation(source, indices, seed=self.order.seed, epoch=self.order.epoch)
        return normalise(pixels, self.task.mean, self.task.std), labels

    def __getitems__(self, steps: list[int]) -> Batch:
        return self[steps[0]]


class _Validation(Dataset[Batch]):
    """Turns lists of indices into normalised batches."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.val)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        images = normalise(self.task.val.images(indices), self.task.mean, self.task.std)
        return images, self.task.val.labels[torch.as_tensor(indices)]


def make_loaders(
    task: Task, config: DataConfig, seed: int, *, in_pairs: bool = False
) -> tuple[DataLoader[Batch], EpochOrder, DataLoader[Batch]]:
    """Loaders for training and validation, and the order of the first, whose ``epoch`` and ``start`` the loop sets.

    Under several processes ``start`` counts the batches of all of them, and each process takes its share of the order,
    which is what accelerate does with the loader. With ``in_pairs`` each image of a batch has another of its class.

    Raises:
        DataError: there are fewer training images than one batch holds, or they are a stream, which has no pairs.
    """
    require_one_batch(task.name, len(task.train), config.batch_size)
    dataset, order = _training_set(task, config, seed, in_pairs)
    train = loader_of(dataset, config.workers, batch_sampler=order)
    return train, order, loader_of(_Validation(task), config.workers, batch_size=max(config.batch_size, 256))


def require_one_batch(name: str, images: int, batch_size: int) -> None:
    """Refuses a set that could not be trained on.

    Raises:
        DataError: there are fewer training images than one batch holds.
    """
    if images < batch_size:
        raise DataError(
            f"data set {name}: {images} training images do not fill one batch of {batch_size}. "
            "Lower data.batch_size (--batch-size) or add images."
        )


def loader_of(
    dataset: Dataset[B], workers: int, *, batch_sampler: EpochOrder | None = None, batch_size: int = 1
) -> DataLoader[B]:
    """A loader for a data set that makes a whole batch of a list of indices.

    Args:
        dataset: Gives the batch for a list of indices.
        workers: Processes that load; 0 loads in this one.
        batch_sampler: The indices of each batch; by default all images in order, ``batch_size`` at a time.
        batch_size: See there.
    """
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        batch_size=batch_size,
        collate_fn=_already_collated,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_run,
        # One of its own: a loader would otherwise draw from torch's global generator, which dropout uses.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """A scheduler or a terminal signals all processes: the run is to end its step and save, with workers still there.

    Not for ever: Python ends them by SIGTERM where a run ends without their loader, and waits until they have.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:
    end = threading.Timer(SECONDS_TO_SAVE, os._exit, [0])
    end.daemon = True
    end.start()


def _training_set(task: Task, config: DataConfig, seed: int, in_pairs: bool) -> tuple[Dataset[Batch], EpochOrder]:
    if isinstance(task.train, StreamSource):
        if in_pairs:
            raise DataError(
                f"data set {task.name} is read as a stream, and images of one class cannot be looked up in it. Choose "
                "another data set, or evolve.loss: labels (--loss)."
            )
        processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        task.train.divide(processes * max(config.workers, 1))
        steps = StepOrder(len(task.train) // config.batch_size, seed)
        return _Streaming(task.train, task, steps, config.batch_size), steps
    order: EpochOrder = EpochOrder(len(task.train), config.batch_size, seed)
    if in_pairs:
        order = PairOrder(task.train.labels, config.batch_size, seed)
    return _Training(task.train, task, order), order


def _already_collated(batch: Any) -> Any:
    return batch
