"""Data sets that torchvision reads, in the layout on disk that torchvision's own downloads have.

Nothing is downloaded; what is missing is named, with the command that gets it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.locations import need_folder
from netaug_fx.training.data.pictures import Files, picture_task
from netaug_fx.training.data.task import Task, TensorImages
from netaug_fx.training.data.transforms import training_changes

CIFAR_SIDE = 32
CIFAR_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


@dataclass(frozen=True)
class KnownSet:
    """Where a set's files are and what reads them.

    Attributes:
        reader: class of ``torchvision.datasets``.
        train, val: keyword arguments of the reader; several are put together. Where a set has a test part, it is what
            accuracies in the literature are about, so it serves as validation.
        expected: paths below ``data.dir`` that must exist.
        how: how to get it, where torchvision cannot download it.
    """

    reader: str
    train: tuple[dict[str, Any], ...]
    val: tuple[dict[str, Any], ...]
    expected: tuple[str, ...]
    how: str | None = None

    def layout(self) -> str:
        """What should be there and how to get it."""
        how = self.how or (
            f"Get it with: python -c \"import torchvision; torchvision.datasets.{self.reader}('DIR', download=True)\""
        )
        return f"Expected DIR/{{{', '.join(self.expected)}}}. {how}."


FLOWERS102 = KnownSet(
    reader="Flowers102",
    train=({"split": "train"}, {"split": "val"}),
    val=({"split": "test"},),
    expected=("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
)
FOOD101 = KnownSet(
    reader="Food101",
    train=({"split": "train"},),
    val=({"split": "test"},),
    expected=("food-101/images", "food-101/meta/train.json", "food-101/meta/test.json"),
)
STANFORD_CARS = KnownSet(
    reader="StanfordCars",
    train=({"split": "train"},),
    val=({"split": "test"},),
    expected=(
        "stanford_cars/cars_train",
        "stanford_cars/cars_test",
        "stanford_cars/devkit/cars_meta.mat",
        "stanford_cars/devkit/cars_train_annos.mat",
        "stanford_cars/cars_test_annos_withlabels.mat",
    ),
    how="The authors' site no longer offers it; copies of the original archives keep these names",
)
OXFORD_PETS = KnownSet(
    reader="OxfordIIITPet",
    train=({"split": "trainval"},),
    val=({"split": "test"},),
    expected=(
        "oxford-iiit-pet/images",
        "oxford-iiit-pet/annotations/trainval.txt",
        "oxford-iiit-pet/annotations/test.txt",
    ),
)
CIFAR10 = KnownSet(
    reader="CIFAR10",
    train=({"train": True},),
    val=({"train": False},),
    expected=tuple(f"cifar-10-batches-py/{name}" for name in CIFAR_BATCHES),
)
CIFAR100 = KnownSet(
    reader="CIFAR100",
    train=({"train": True},),
    val=({"train": False},),
    expected=tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
)


def load_photographs(known: KnownSet, config: DataConfig, seed: int) -> Task:
    """A set of image files with a list of classes.

    Raises:
        DataError: torchvision is missing, a file is missing, or one cannot be read.
    """
    root = need_folder(config, known.layout(), *known.expected)
    train, val = ([_opened(known, root, part) for part in parts] for parts in (known.train, known.val))
    return picture_task(config, config.name, _files(train), _files(val), _classes(train))


def load_cifar(known: KnownSet, mean: Sequence[float], std: Sequence[float], config: DataConfig, seed: int) -> Task:
    """CIFAR in its Python version: all images in memory, 32 x 32, enlarged where another size is asked for.

    Raises:
        DataError: torchvision is missing, a file is missing, or its checksum is not that of the published one.
    """
    root = need_folder(config, known.layout(), *known.expected)
    side = config.image_size or CIFAR_SIDE
    opened = [_opened(known, root, part) for (part,) in (known.train, known.val)]
    train, val = (
        TensorImages(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(part.targets), side)
        for part in opened
    )
    return Task(
        name=config.name,
        train=train,
        val=val,
        classes=_classes(opened),
        channels=3,
        image_size=side,
        mean=tuple(mean),
        std=tuple(std),
        # Four pixels of 32, as is usual for CIFAR.
        augmentation=training_changes(config, side, shift=0.125, zoom=0.0, flip=True),
    )


def _opened(known: KnownSet, root: Path, part: dict[str, Any]) -> Any:
    """A part of a set, by torchvision; what it cannot read is told with the remedy."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(
            f"this data set is read by torchvision, which cannot be imported ({error}): pip install 'netaug_fx[data]'"
        ) from None
    # Given a loader that decodes nothing, these readers list their files with the classes. Only one takes no loader.
    lister = {} if known.reader.startswith("CIFAR") or known.reader == "OxfordIIITPet" else {"loader": _itself}
    try:
        return getattr(datasets, known.reader)(root, **part, **lister, download=False)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{known.reader} in {root} is there but cannot be read; a file is truncated or changed ({error}). "
            f"{known.layout()}"
        ) from None


def _itself(path: str | Path) -> str:
    return str(path)


def _files(parts: Sequence[Any]) -> tuple[Files, list[int]]:
    """All files of the parts of a set, with their classes."""
    listed = [item for part in parts for item in _listing(part)]
    return Files(file for file, _ in listed), [label for _, label in listed]


def _listing(part: Any) -> list[tuple[str, int]]:
    if hasattr(part, "_images"):
        return [(str(file), int(label)) for file, label in zip(part._images, part._labels, strict=True)]
    return [(str(file), int(label)) for file, label in (part[index] for index in range(len(part)))]


def _classes(parts: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in parts[0].classes)


LOADERS: dict[str, Callable[[DataConfig, int], Task]] = {
    # Channel statistics of each training part.
    "cifar10": functools.partial(load_cifar, CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": functools.partial(load_cifar, CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "flowers102": functools.partial(load_photographs, FLOWERS102),
    "food101": functools.partial(load_photographs, FOOD101),
    "stanford_cars": functools.partial(load_photographs, STANFORD_CARS),
    "oxford_pets": functools.partial(load_photographs, OXFORD_PETS),
}
