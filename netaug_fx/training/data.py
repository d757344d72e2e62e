"""Image sets for classification: scikit-learn's digits, and folders with one sub-folder for each class.

A set gives uint8 images of one size; batches are normalised, and training batches moved, zoomed and mirrored, as
tensors. What happens to an image depends only on (seed, epoch, place in the epoch), so a run that is resumed in the
middle of an epoch sees exactly what the uninterrupted run saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from netaug_fx.errors import DataError
from netaug_fx.training.config import DataConfig
from netaug_fx.training.image_folder import FolderImages
from netaug_fx.training.split import stratified_split

Batch = tuple[Tensor, Tensor]


class ImageSource(Protocol):
    """Where images come from; they all have one size."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 ``[n]``."""
        ...

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, channels, side, side]``."""
        ...


@dataclass(frozen=True)
class TensorImages:
    """Images that are held in memory: ``pixels`` uint8 ``[n, channels, side, side]``, ``labels`` int64 ``[n]``."""

    pixels: Tensor
    labels: Tensor

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``."""
        return self.pixels[torch.as_tensor(indices)]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, as parts of their side: ``shift``, ``zoom`` in and out, ``flip``."""

    shift: float
    zoom: float
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change float images ``[n, c, s, s]`` by one bilinear resampling; outside the image its border repeats."""
        if not (self.shift or self.zoom or self.flip):
            return images
        n = images.shape[0]
        draw = torch.rand(n, 4, generator=generator)
        scale = 1 + self.zoom * (2 * draw[:, 0] - 1)
        # Coordinates run from -1 to 1, so one side is 2 units long.
        move = 2 * self.shift * (2 * draw[:, 1:3] - 1)
        mirror = torch.where(draw[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones(n)
        affine = torch.zeros(n, 2, 3)
        affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = scale * mirror, scale, move
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Task:
    """A data set made ready: what to train on, what to validate on, and the shape of the problem.

    ``mean`` and ``std`` have one value for each channel; a net sees ``(pixels / 255 - mean) / std``.
    """

    name: str
    train: ImageSource
    val: ImageSource
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    def example(self, batch: int = 2) -> Tensor:
        """The first validation images as the net sees them, ``[batch, channels, image_size, image_size]``."""
        indices = range(min(batch, len(self.val.labels)))
        return _normalise(self.val.images(indices), self.mean, self.std)


def load_task(config: DataConfig, seed: int) -> Task:
    """Read the data set that ``config`` names; without a ``val`` folder, split each class by ``seed``.

    Raises:
        DataError: there is no such folder, it is empty, has one class, or a file in it cannot be read.
    """
    if config.name == "digits":
        return _digits(config, seed)
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
        augmentation=_augmentation(config, shift=0.1, zoom=0.25, flip=True),
    )


def _digits(config: DataConfig, seed: int) -> Task:
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
        augmentation=_augmentation(config, shift=0.1, zoom=0.1, flip=False),
    )


def _augmentation(config: DataConfig, *, shift: float, zoom: float, flip: bool) -> Augmentation:
    return Augmentation(
        shift=shift if config.shift is None else config.shift,
        zoom=zoom if config.zoom is None else config.zoom,
        flip=flip if config.flip is None else config.flip,
    )


def _normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channelwise = (1, -1, 1, 1)
    return (pixels.float() / 255 - torch.tensor(mean).view(channelwise)) / torch.tensor(std).view(channelwise)


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
        images = _normalise(self.source.images(indices), self.task.mean, self.task.std)
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
