"""What is in the tar files of a sharded data set: images and classes, where they lie, and how many there are.

Counting reads the headers and classes of every shard once; the counts are kept in a file beside the shards, and a
shard whose size has changed is counted again.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from netaug_fx.atomic import write_text
from netaug_fx.errors import DataError
from netaug_fx.training.data.pictures import read_picture

IMAGE_ENTRIES = ("jpg", "jpeg", "png", "webp")
LAYOUT = (
    "Shards are tar files, named by a pattern such as wds:DIR/train-{000000..000123}.tar or wds:'DIR/train-*.tar', "
    "that hold for each sample KEY.jpg (or png, webp) and KEY.cls, the number of its class as text, side by side."
)


@dataclass(frozen=True)
class Entry:
    """An image in a shard: its key, its class, and where its bytes are."""

    key: str
    label: int
    offset: int
    size: int


@dataclass(frozen=True)
class Count:
    """How many samples a shard has, and its largest class number."""

    samples: int
    largest: int


def is_local(shard: str) -> bool:
    """Whether a shard is a file here, and not a URL or a command that webdataset opens."""
    return "://" not in shard and not shard.startswith("pipe:")


def expand(pattern: str) -> list[str]:
    """The shards of a pattern, in order: braces first, then ``*`` and ``?`` of local files.

    Raises:
        DataError: webdataset is missing, a local shard is missing, or none matches.
    """
    try:
        braces: Any = importlib.import_module("braceexpand")
    except ImportError as error:
        raise DataError(f"--data wds: needs webdataset ({error}): pip install 'netaug_fx[data]'") from None
    try:
        names = list(braces.braceexpand(pattern))
    except braces.UnbalancedBracesError as error:
        raise DataError(f"pattern of shards {pattern!r}: {error}. {LAYOUT}") from None
    shards: list[str] = []
    for name in names:
        shards += sorted(glob.glob(name)) if is_local(name) and glob.has_magic(name) else [name]
    if not shards:
        raise DataError(f"pattern of shards {pattern!r} matches no file. {LAYOUT}")
    missing = [shard for shard in shards if is_local(shard) and not Path(shard).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(shards)} shards of {pattern!r} are missing, the first is {missing[0]}. {LAYOUT}"
        )
    return shards


def entries(shard: str) -> Iterator[Entry]:
    """The samples of a local shard, in order, without reading the images.

    Raises:
        DataError: it is no tar file, is truncated, or a sample lacks its image or class.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            yield from _paired(shard, tar)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise broken_shard(shard, error) from None


def _paired(shard: str, tar: tarfile.TarFile) -> Iterator[Entry]:
    size = Path(shard).stat().st_size
    image: tuple[str, int, int] | None = None
    label: tuple[str, int] | None = None
    for member in tar:
        if not member.isfile():
            continue
        if member.offset_data + member.size > size:
            raise tarfile.ReadError("unexpected end of data")
        key, ending = split_name(member.name)
        if ending in IMAGE_ENTRIES:
            image = (key, member.offset_data, member.size)
        elif ending == "cls":
            stream = tar.extractfile(member)
            label = (key, read_label(b"" if stream is None else stream.read(), shard, key))
        if image is not None and label is not None and image[0] == label[0]:
            yield Entry(image[0], label[1], image[1], image[2])
            image = label = None
        tar.members = []  # type: ignore[attr-defined] # otherwise all headers stay in memory
    left = image or label
    if left is not None:
        raise DataError(f"shard {shard}: sample {left[0]!r} has only one of image and class. {LAYOUT}")


def split_name(name: str) -> tuple[str, str]:
    """A member's key and ending, as webdataset parts them: at the first dot of the last component."""
    folder, _, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def read_label(content: bytes, shard: str, key: str) -> int:
    """The number in a ``cls`` entry.

    Raises:
        DataError: it is no number from 0 on.
    """
    text = content.decode("utf-8", errors="replace").strip()
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"shard {shard}: {key}.cls holds {text[:40]!r}, expected the number of a class. {LAYOUT}")
    return int(text)


def broken_shard(shard: str, reason: object) -> DataError:
    """The error for a shard that is no whole tar file."""
    return DataError(f"shard {shard} is no whole tar file ({reason}). Copy it again. {LAYOUT}")


def counted(shards: Sequence[str]) -> list[Count]:
    """The counts of local shards, from the file beside them where their sizes are still the same.

    Raises:
        DataError: a shard is broken, or is not local.
    """
    remote = [shard for shard in shards if not is_local(shard)]
    if remote:
        raise DataError(
            f"shards that are not local files, such as {remote[0]}, are not counted: set data.train_samples and "
            "data.num_classes, and keep the validation shards (data.val_shards) on a disk."
        )
    file = Path(shards[0]).parent / f".shards-{zlib.crc32(chr(0).join(shards).encode()):08x}.json"
    known = _known(file)
    counts: dict[str, dict[str, int]] = {}
    for shard in shards:
        size = Path(shard).stat().st_size
        former = known.get(shard)
        if former is None or former["size"] != size:
            labels = [entry.label for entry in entries(shard)]
            former = {"size": size, "samples": len(labels), "largest": max(labels, default=-1)}
        counts[shard] = former
    if counts != known:
        # Where the folder cannot be written they are counted again next time.
        with contextlib.suppress(OSError):
            write_text(file, json.dumps(counts, indent=1) + "\n")
    return [Count(counts[shard]["samples"], counts[shard]["largest"]) for shard in shards]


def _known(file: Path) -> dict[str, dict[str, int]]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = {"size", "samples", "largest"}
    whole = isinstance(content, dict) and all(isinstance(row, dict) and set(row) == names for row in content.values())
    return content if whole else {}


class ShardImages:
    """Reads images of local shards by index."""

    def __init__(self, shards: Sequence[str]) -> None:
        """Find where the images lie.

        Raises:
            DataError: a shard is broken.
        """
        self.shards = list(shards)
        places: list[tuple[int, int, int, int]] = []
        for number, shard in enumerate(self.shards):
            places += [(number, entry.offset, entry.size, entry.label) for entry in entries(shard)]
        self.places = np.array(places, dtype=np.int64).reshape(-1, 4)

    @property
    def labels(self) -> list[int]:
        """The class of each image."""
        labels: list[int] = self.places[:, 3].tolist()
        return labels

    def __len__(self) -> int:
        return len(self.places)

    def __call__(self, index: int) -> Image.Image:
        """The image at ``index``, RGB and upright."""
        number, offset, size, _ = self.places[index].tolist()
        with open(self.shards[number], "rb") as file:
            file.seek(offset)
            return read_picture(io.BytesIO(file.read(size)), f"at byte {offset} of {self.shards[number]}")

    def check(self) -> None:
        """Nothing more: the headers were read when the images were found."""
