"""Data sets of the Hugging Face hub, or saved by the library `datasets`: ``--data hf:NAME``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.pictures import Reader, as_rgb, picture_task
from netaug_fx.training.data.split import VALIDATION_PARTS, stratified_split
from netaug_fx.training.data.task import Task

PREFIX = "hf:"
# In this order: of two parts that could serve, the first is taken.


class Rows:
    """Reads the images of a table of `datasets`."""

    def __init__(self, table: Any, column: str, name: str) -> None:
        self.table, self.column, self.name = table, column, name

    def __len__(self) -> int:
        return len(self.table)

    def __call__(self, index: int) -> Image.Image:
        """The image in row ``index``, RGB and upright."""
        try:
            return as_rgb(self.table[index][self.column])
        except (OSError, ValueError, SyntaxError, AttributeError, Image.DecompressionBombError) as error:
            raise DataError(
                f"data set {self.name}: the image in row {index} cannot be read: {error}. Take it out of the data set."
            ) from None

    def check(self) -> None:
        """Nothing: rows have no header that could be read without the whole image."""


def load_hugging_face(config: DataConfig, seed: int) -> Task:
    """A data set by its name on the hub, a folder of ``save_to_disk``, or a folder of images that `datasets` reads.

    Raises:
        DataError: `datasets` is not installed, the set cannot be loaded, or has no column of images or classes.
    """
    name = config.name.removeprefix(PREFIX)
    parts = _loaded(name, config)
    train = parts.get("train", next(iter(parts.values())))
    image = _column(train, config.image_column, "Image", "data.image_column", name)
    label = _column(train, config.label_column, "ClassLabel", "data.label_column", name)
    val = next((parts[part] for part in VALIDATION_PARTS if part in parts and parts[part] is not train), None)
    values = _values(train, label)
    if val is None:
        chosen, held_out = stratified_split(values, config.val_fraction, seed)
        train, val = train.select(chosen), train.select(held_out)
    feature = train.features[label]
    classes = list(range(len(feature.names))) if hasattr(feature, "names") else sorted(set(values))
    names = feature.names if hasattr(feature, "names") else [str(value) for value in classes]
    if len(classes) < 2:
        raise DataError(f"data set {name}: column {label!r} holds one class; set data.label_column to another one.")
    numbers = {value: number for number, value in enumerate(classes)}
    tables: list[tuple[Reader, Sequence[int]]] = [
        (Rows(table, image, name), _labels(_values(table, label), numbers, name, label)) for table in (train, val)
    ]
    return picture_task(config, config.name, tables[0], tables[1], names)


def _loaded(name: str, config: DataConfig) -> dict[str, Any]:
    """The parts of the set, by name."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"--data {PREFIX}{name} needs the library datasets ({error}): pip install 'netaug_fx[data]'"
        ) from None
    folder = Path(name)
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
        elif folder.is_dir():
            loaded = datasets.load_dataset("imagefolder", data_dir=name, cache_dir=config.dir)
        else:
            loaded = datasets.load_dataset(name, config.hf_config, cache_dir=config.dir)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"--data {PREFIX}{name}: the data set cannot be loaded ({type(error).__name__}: {error}). Give a name on "
            "the hub (with data.hf_config where it has several configurations), a folder written by save_to_disk, or "
            "a folder of images; without a network, load it once where there is one and copy the folder of --data-dir."
        ) from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _column(table: Any, asked: str | None, kind: str, setting: str, name: str) -> str:
    """The column asked for, or the only one of a feature type; classes may also be called ``label``."""
    columns: dict[str, Any] = table.features
    found = [column for column, feature in columns.items() if type(feature).__name__ == kind]
    if not found and kind == "ClassLabel" and "label" in columns:
        found = ["label"]
    if asked is not None:
        found = [asked] if asked in columns else []
    if len(found) != 1:
        what = f"no column {asked!r}" if asked is not None else f"{len(found)} columns of type {kind}"
        listed = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in columns.items())
        raise DataError(f"data set {name} has {what}; its columns are {listed}. Set {setting} to one of them.")
    return found[0]


def _values(table: Any, column: str) -> list[Any]:
    """A whole column; sliced, since going through it value by value is slow."""
    values: list[Any] = table[column][:]
    return values


def _labels(values: list[Any], numbers: dict[Any, int], name: str, column: str) -> list[int]:
    strangers = sorted({str(value) for value in values if value not in numbers})
    if strangers:
        raise DataError(
            f"data set {name}: column {column!r} has classes that are not among those of the training images: "
            f"{', '.join(strangers[:5])}. A test part whose classes are withheld (-1) cannot validate; take it out, so "
            "that a part of the training images is held out."
        )
    return [numbers[value] for value in values]
