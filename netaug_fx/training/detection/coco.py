"""COCO's format: one file of annotations for a folder of images (https://cocodataset.org/#format-data).

COCO itself, and any other set that is annotated in its format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netaug_fx.errors import DataError
from netaug_fx.training.data.locations import need_folder
from netaug_fx.training.detection.annotated_images import LARGEST_SIDE, AnnotatedImages, annotated_task
from netaug_fx.training.detection.annotations import Collector
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.detection.detection_task import DetectionTask

LAYOUT = (
    "Expected DIR/annotations/instances_train2017.json, DIR/annotations/instances_val2017.json, DIR/train2017/*.jpg "
    "and DIR/val2017/*.jpg: unpack annotations_trainval2017.zip, train2017.zip and val2017.zip from "
    "http://images.cocodataset.org in DIR. For other sets in this format, set data.train_annotations, "
    "data.train_images, data.val_annotations and data.val_images."
)
# JSON's whole numbers have no end, but sums with fractions do.
_HUGE = 1e300
# True and False are 1 and 0 here.
_FLAGS = {0: False, 1: True, "0": False, "1": True, None: False}
_AGAIN = "Get it again, or write it anew with the program that made it."


def load_coco(config: DetectionDataConfig, seed: int) -> DetectionTask:
    """``--data coco --data-dir DIR``; classes are numbered in the order of the ids of their categories.

    Raises:
        DataError: a file or folder is missing; annotations are cut short, are not JSON or lack a key; images are
            missing or cannot be read; torchvision is asked for and not installed.
    """
    parts = [(config.train_annotations, config.train_images), (config.val_annotations, config.val_images)]
    # An absolute path stands for itself when it is put behind a folder's.
    root = need_folder(config, LAYOUT, *(path for part in parts for path in part))
    train, val = (read_annotations(root / file) for file, _ in parts)
    classes = [name for _, name in _categories(train, root / config.train_annotations)]
    sources = [
        read_coco(content, root / file, root / images, classes)
        for content, (file, images) in zip((train, val), parts, strict=True)
    ]
    return annotated_task(config, sources[0], sources[1], classes)


def read_annotations(file: Path) -> dict[str, Any]:
    """The content of a file of annotations; that the three lists it must have are there is all that is checked.

    Raises:
        DataError: it cannot be read, is cut short, is not JSON, or lacks a list.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # some programs write a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f"annotations {file} are not JSON: {error}. {_AGAIN}") from None
    except OSError as error:
        raise DataError(f"annotations {file} cannot be read: {error}.") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        # A parser that meets the end, or an object that does not end with a bracket: the rest is missing.
        begun = text.lstrip().startswith("{") and not error.msg.startswith("Extra data")
        cut = error.pos >= len(text.rstrip()) or (begun and not text.rstrip().endswith(("}", "]")))
        what = f"are cut short after {len(text):,} characters" if cut else "are not JSON"
        raise DataError(f"annotations {file} {what} ({error}). {_AGAIN}") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError(f"annotations {file} cannot be read: {error}. {_AGAIN}") from None
    except RecursionError:
        raise DataError(f"annotations {file} are nested too deeply to be COCO's format. {_AGAIN}") from None
    if not isinstance(content, dict):
        raise DataError(f"annotations {file}: expected a mapping, found {type(content).__name__}. {_needed(())}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"annotations {file} have no list {key!r}. {_needed(content)}")
    return content


def _needed(found: Any) -> str:
    return (
        "COCO's format needs the lists 'images', 'annotations' and 'categories' (found: "
        f"{', '.join(map(str, found)) or 'none'}). Choose the file of instances, such as instances_train2017.json; "
        "files of captions or key points do not do."
    )


def read_coco(content: Mapping[str, Any], file: Path, images: Path, classes: Sequence[str]) -> AnnotatedImages:
    """Images with boxes from what `read_annotations` gave.

    Boxes that cannot be used are counted in the result's ``skipped``. Crowds are ignored, images without boxes kept.

    Args:
        content: The content of the file.
        file: Its name, for errors.
        images: The folder that its images are in.
        classes: The names of all classes, in the order of their numbers; other categories are unknown.

    Raises:
        DataError: an image or category lacks something or is there twice, or images are missing or cannot be read.
    """
    listed = list(_images(content, file))
    if not listed:
        raise DataError(f"annotations {file} list no images. {_AGAIN}")
    number = {name: label for label, name in enumerate(classes)}
    labels = {key: number[name] for key, name in _categories(content, file) if name in number}
    places = {image["id"]: place for place, image in enumerate(listed)}
    collector = Collector([(image["width"], image["height"]) for image in listed])
    for annotation in content["annotations"]:
        _collect(collector, annotation, listed, places, labels)
    paths = [images / image["file_name"] for image in listed]
    boxes = collector.boxes(f"annotations {file}")
    return AnnotatedImages(paths, collector.sizes, boxes, collector.skipped, f"annotations {file}")


def _collect(
    collector: Collector,
    annotation: Any,
    listed: Sequence[Mapping[str, Any]],
    places: Mapping[Any, int],
    labels: Mapping[Any, int],
) -> None:
    """Take one box, or count why not."""
    skipped = collector.skipped
    if not isinstance(annotation, dict):
        return skipped.add("malformed", f"{annotation!r:.80}")
    image, category = annotation.get("image_id"), annotation.get("category_id")
    box: Any = annotation.get("bbox")
    where = f"annotation {annotation.get('id', 'without id')}"
    keys_are_known = all(isinstance(key, int | float | str) for key in (image, category))  # tables write 3 as 3.0
    if not keys_are_known or not _four_numbers(box):
        return skipped.add("malformed", f"{where}: image {image!r}, category {category!r}, bbox {box!r}"[:160])
    if image not in places:
        return skipped.add("unknown_image", f"{where}: image {image!r}")
    where = f"{where} in {listed[places[image]]['file_name']}: bbox {box}"
    if category not in labels:
        return skipped.add("unknown_class", f"{where}, category {category!r}")
    if not all(abs(value) < _HUGE for value in box):
        return skipped.add("not_finite", where)
    x, y, width, height = box
    flags = [annotation.get(key) for key in ("iscrowd", "ignore")]
    if not all(isinstance(flag, int | float | str | None) and flag in _FLAGS for flag in flags):
        return skipped.add("malformed", f"{where}, iscrowd and ignore {flags}"[:160])
    ignore = any(_FLAGS[flag] for flag in flags)
    return collector.add(places[image], (x, y, x + width, y + height), labels[category], ignore, where)


def _four_numbers(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)
    )


def _images(content: Mapping[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    """The entries of the images, each looked at."""
    needed = {"id": int | float | str, "file_name": str, "width": int | float, "height": int | float}
    seen: set[Any] = set()
    for place, image in enumerate(content["images"]):
        _need(image, needed, f"annotations {file}: image {place} of the list")
        if image["id"] in seen:
            raise DataError(f"annotations {file}: two images have the id {image['id']!r}. Give each one of its own.")
        if not 1 <= min(image["width"], image["height"]) <= max(image["width"], image["height"]) <= LARGEST_SIDE:
            size = f"{image['width']} x {image['height']}"
            raise DataError(f"annotations {file}: image {image['file_name']} has {size} pixels. Correct its size.")
        try:
            os.fsencode(image["file_name"])
        except UnicodeEncodeError:
            raise DataError(f"annotations {file}: no file can be called {image['file_name']!r}. {_AGAIN}") from None
        seen.add(image["id"])
        yield {**image, "width": int(image["width"]), "height": int(image["height"])}


def _categories(content: Mapping[str, Any], file: Path) -> list[tuple[int, str]]:
    """Id and name of each category, in the order of the ids."""
    for place, category in enumerate(content["categories"]):
        _need(category, {"id": int, "name": str}, f"annotations {file}: category {place} of the list")
    categories = sorted((category["id"], category["name"]) for category in content["categories"])
    if not categories:
        raise DataError(f"annotations {file} list no categories. {_AGAIN}")
    for which, values in zip(("id", "name"), zip(*categories, strict=True), strict=True):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise DataError(f"annotations {file}: two categories have the {which} {twice!r}. Give each one of its own.")
    return categories


def _need(entry: Any, needed: Mapping[str, Any], what: str) -> None:
    """Look that an entry has what it needs."""
    if not isinstance(entry, dict):
        raise DataError(f"{what} is no mapping: found {entry!r:.80}. {_AGAIN}")
    for key, kind in needed.items():
        if not isinstance(entry.get(key), kind) or isinstance(entry[key], bool):
            found = f"{entry[key]!r:.40}" if key in entry else "none"
            raise DataError(f"{what} needs {key!r}, found {found} in {entry!r:.120}. {_AGAIN}")
