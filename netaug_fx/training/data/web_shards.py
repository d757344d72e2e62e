"""Sets that do not fit one disk, as WebDataset shards: ``--data wds:DIR/train-{000000..000123}.tar``.

The shards are read from front to end and never in a random order: from local disks, network mounts, or what webdataset
opens besides (``https://``, ``pipe:...``). In each epoch they are dealt out anew to *lanes*, one for each worker of
each process; a lane mixes its images in a buffer and never ends, so that all have the same number of steps although
shards differ in size. Which images step k of an epoch has follows from the seed, the epoch and the number of lanes, so
a run goes on in the middle of an epoch by passing over what it has seen, undecoded.
"""

from __future__ import annotations

import importlib
import io
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.counters import key_of
from netaug_fx.training.data.pictures import SIDE, Pictures, read_picture, square
from netaug_fx.training.data.shard_index import (
    IMAGE_ENTRIES,
    LAYOUT,
    ShardImages,
    broken_shard,
    counted,
    expand,
    is_local,
    read_label,
)
from netaug_fx.training.data.split import stratified_split
from netaug_fx.training.data.task import IMAGENET_MEAN, IMAGENET_STD, Task
from netaug_fx.training.data.transforms import Picture, Source, training_changes

PREFIX = "wds:"
# Images that are mixed in a lane, still encoded: about 100 MB of ImageNet's.
BUFFER = 1000

Sample = Mapping[str, Any]


class ShardStream:
    """Training images of shards, read in lanes."""

    def __init__(self, shards: Sequence[str], samples: int, seed: int, side: int, classes: int) -> None:
        self.shards, self.samples, self.seed, self.side = list(shards), samples, seed, side
        self.classes = classes
        self.lanes = 1
        # The lane that is being read: (epoch, lane), batches taken, and what comes next.
        self._open: tuple[tuple[int, int], int, Iterator[Sample]] | None = None

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        # An open tar file cannot be sent to a worker process; the worker opens its own.
        return {**self.__dict__, "_open": None}

    def divide(self, lanes: int) -> None:
        """Deal the shards out to so many lanes.

        Raises:
            DataError: there are fewer shards than lanes.
        """
        if len(self.shards) < lanes:
            raise DataError(
                f"{len(self.shards)} training shards cannot be shared among {lanes} workers of all processes, who each "
                "need one of their own. Lower data.workers, start fewer processes, or write smaller shards."
            )
        self.lanes = lanes
        self._open = None

    def batch(self, step: int, size: int, epoch: int) -> tuple[Source, list[int], Tensor]:
        """The images of a step, the numbers that name them there, and their classes, int64 ``[size]``.

        Raises:
            DataError: a shard is broken, or a sample lacks its image or class.
        """
        place, wanted = (epoch, step % self.lanes), step // self.lanes
        if self._open is None or self._open[0] != place or self._open[1] > wanted:
            self._open = (place, 0, self._lane(*place))
        _, taken, samples = self._open
        for _ in range((wanted - taken) * size):
            next(samples)
        chosen = [next(samples) for _ in range(size)]
        self._open = (place, wanted + 1, samples)
        labels = [self._label(sample) for sample in chosen]
        source = _Chosen(chosen, self.side)
        return source, list(source.samples), torch.tensor(labels)

    def lane_shards(self, epoch: int, lane: int) -> list[str]:
        """The shards that a lane reads in an epoch; no two lanes share one."""
        order = self.shards.copy()
        random.Random(key_of(self.seed, epoch)).shuffle(order)
        return order[lane :: self.lanes]

    def _lane(self, epoch: int, lane: int) -> Iterator[Sample]:
        """The samples of a lane, mixed, without end."""
        webdataset = _library()
        own = self.lane_shards(epoch, lane)
        mixing = random.Random(key_of(self.seed, epoch, lane))
        while True:
            reading = webdataset.DataPipeline(
                webdataset.SimpleShardList(own),
                webdataset.tarfile_to_samples(),
                webdataset.shuffle(BUFFER, initial=BUFFER, rng=mixing),
            )
            empty = True
            try:
                for sample in reading:
                    empty = False
                    yield sample
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                # webdataset adds what it was reading to the arguments of an error.
                shard = next((str(word) for word in error.args if word in own), f"{own[0]} or one after it")
                raise broken_shard(shard, error.args[0] if error.args else error) from None
            if empty:
                raise DataError(f"shards {', '.join(own[:3])} hold no sample. {LAYOUT}")

    def _label(self, sample: Sample) -> int:
        shard, key = str(sample["__url__"]), str(sample["__key__"])
        if "cls" not in sample or not any(ending in sample for ending in IMAGE_ENTRIES):
            raise DataError(f"shard {shard}: sample {key!r} lacks its image or its class. {LAYOUT}")
        label = read_label(sample["cls"], shard, key)
        if label >= self.classes:
            raise DataError(
                f"shard {shard}: sample {key!r} is of class {label}, but there are {self.classes} classes, counted "
                "from 0. Set data.num_classes."
            )
        return label


class _Chosen:
    """The images of one step, by numbers made of their names: what happens to an image follows from its name."""

    def __init__(self, chosen: Sequence[Sample], side: int) -> None:
        self.side = side
        self.samples: dict[int, Sample] = {}
        for sample in chosen:
            name = f"{Path(str(sample['__url__'])).name}/{sample['__key__']}".encode()
            number = key_of(*(int.from_bytes(name[at : at + 8], "big") for at in range(0, len(name), 8)))
            while number in self.samples:  # a lane may begin anew within a step, and so have an image twice
                number = key_of(number)
            self.samples[number] = sample

    def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """Central squares, uint8 ``[n, 3, side, side]``."""
        return torch.stack([square(self._read(index), self.side) for index in indices])

    def picture(self, index: int, epoch: int = 0) -> Picture:
        """The image of that number at its own size."""
        return self._read(index)

    def _read(self, index: int) -> Image.Image:
        sample = self.samples[index]
        ending = next(ending for ending in IMAGE_ENTRIES if ending in sample)
        return read_picture(io.BytesIO(sample[ending]), f"{sample['__key__']}.{ending} in {sample['__url__']}")


def load_web_shards(config: DataConfig, seed: int) -> Task:
    """Shards for training, streamed, and shards for validation, which are local and read by index.

    Raises:
        DataError: webdataset is missing, or a shard is missing, broken, or cannot be counted.
    """
    _library()
    train, val = _parts(config, seed)
    images = ShardImages(_local(val))
    samples, classes = config.train_samples, config.num_classes
    if samples is None or classes is None:
        counts = counted(train)
        samples = samples or sum(count.samples for count in counts)
        largest = max([*(count.largest for count in counts), *images.labels], default=-1)
        classes = classes or largest + 1
    names = _class_names(train[0], classes)
    side = config.image_size or SIDE
    return Task(
        name=config.name,
        train=ShardStream(train, samples, seed, side, classes),
        val=Pictures(images, images.labels, side, val_crop=config.val_crop),
        classes=names,
        channels=3,
        image_size=side,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=training_changes(config, side, shift=0.1, zoom=0.25, flip=True),
    )


def _library() -> Any:
    try:
        return importlib.import_module("webdataset")
    except ImportError as error:
        raise DataError(f"--data wds: needs webdataset ({error}): pip install 'netaug_fx[data]'") from None


def _parts(config: DataConfig, seed: int) -> tuple[list[str], list[str]]:
    """Training and validation shards."""
    shards = expand(config.name.removeprefix(PREFIX))
    if config.val_shards is not None:
        return shards, expand(config.val_shards.removeprefix(PREFIX))
    if len(shards) < 2:
        raise DataError(
            f"--data {config.name} is one shard, so none can be held out. Give data.val_shards, the pattern of others."
        )
    train, val = stratified_split([0] * len(shards), config.val_fraction, seed)
    return [shards[index] for index in train], [shards[index] for index in val]


def _local(shards: list[str]) -> list[str]:
    remote = [shard for shard in shards if not is_local(shard)]
    if remote:
        raise DataError(
            f"validation shards are read by index and must be local files, found {remote[0]}. Copy them, and give "
            "their pattern as data.val_shards."
        )
    return shards


def _class_names(shard: str, classes: int) -> tuple[str, ...]:
    """The lines of ``classes.txt`` beside the shards, else numbers."""
    file = Path(shard).parent / "classes.txt"
    if not (is_local(shard) and file.is_file()):
        return tuple(str(number) for number in range(classes))
    names = tuple(file.read_text(encoding="utf-8").splitlines())
    if len(names) != classes:
        raise DataError(
            f"{file} has {len(names)} lines, but there are {classes} classes; expected a name in each line."
        )
    return names
