"""Glyph scenes as a data set, and written to disk as COCO is."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from netaug_fx.errors import DataError, InputError
from netaug_fx.training.data import pictures
from netaug_fx.training.detection.annotations import Skipped, Target
from netaug_fx.training.detection.changes import detection_changes
from netaug_fx.training.detection.data_config import DetectionDataConfig, SceneConfig
from netaug_fx.training.detection.detection_task import DetectionTask
from netaug_fx.training.detection.scenes import scene_batch, scene_classes

SIDE = 96
# Mean and standard deviation of ten thousand scenes of the default style, at the size they are drawn at.
MEAN, STD = 0.21, 0.195
# No run has this seed, so validation scenes are never trained on.
VALIDATION_SEED = -1
# Scenes that are rendered together: enough to make calls cheap, few enough to stay in the processor's cache.
_CHUNK = 32


class Scenes:
    """Scenes by index, rendered when they are asked for; with ``fresh`` each epoch has scenes of its own.

    Attributes:
        skipped: always empty; scenes have no boxes that cannot be used.
    """

    def __init__(self, count: int, seed: int, style: SceneConfig | None = None, *, fresh: bool = False) -> None:
        self.count, self.seed, self.style, self.fresh = count, seed, style or SceneConfig(), fresh
        self.skipped = Skipped()
        self._held: list[tuple[Tensor, Target]] | None = None

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Which scene of which seed."""
        return f"scene {index} of seed {self.seed}"

    def target(self, index: int, epoch: int = 0) -> Target:
        """The boxes of a scene, in its own pixels."""
        return self.samples([index], epoch)[0][1]

    def samples(self, indices: Sequence[int], epoch: int = 0) -> list[tuple[Tensor, Target]]:
        """Scenes, uint8 ``[1, style.side, style.side]``, with their boxes."""
        if self._held is not None:
            return [(picture, dict(target)) for picture, target in (self._held[index] for index in indices)]
        start = epoch * self.count if self.fresh else 0
        samples: list[tuple[Tensor, Target]] = []
        for first in range(0, len(indices), _CHUNK):
            places = [start + index for index in indices[first : first + _CHUNK]]
            images, targets = scene_batch(places, self.seed, self.style)
            samples += zip(images, targets, strict=True)
        return samples

    def hold(self) -> Scenes:
        """Render all of them once, where each epoch has the same and they fit into memory; gives itself."""
        if not self.fresh and self.count * self.style.side**2 <= pictures.IN_MEMORY_BYTES:
            self._held = self.samples(range(self.count))
        return self


def load_scenes(config: DetectionDataConfig, seed: int) -> DetectionTask:
    """``--data scenes``: ``train_samples`` scenes an epoch by ``seed``, and the same ``val_samples`` for every seed.

    Raises:
        DataError: a folder is given; matplotlib came without one of its fonts; or torchvision is asked for and not
            installed.
    """
    if config.dir is not None:
        raise DataError(f"--data scenes reads no folder, and --data-dir {config.dir} is given: choose coco or voc")
    side = config.image_size or SIDE
    return DetectionTask(
        name="scenes",
        train=Scenes(config.train_samples, seed, config.scenes, fresh=config.fresh).hold(),
        val=Scenes(config.val_samples, VALIDATION_SEED, config.scenes).hold(),
        classes=scene_classes(config.scenes),
        channels=1,
        image_size=side,
        mean=(MEAN,),
        std=(STD,),
        # Mirrored characters are other characters, or none.
        changes=detection_changes(config, side, (MEAN,), flip=False),
    )


def write_coco(
    folder: str | os.PathLike[str],
    *,
    train: int,
    val: int,
    seed: int = 0,
    style: SceneConfig | None = None,
    suffix: str = ".png",
) -> Path:
    """Write scenes as a data set in COCO's layout, which `load_detection_task` reads as ``coco``.

    Args:
        folder: What to make; it appears when everything is written, or not at all.
        train, val: How many scenes ``train2017`` and ``val2017`` have; those of ``val2017`` are the same for any seed.
        seed: Decides the scenes of ``train2017``.
        style: What varies and how much.
        suffix: ``.png``, which keeps every pixel, or ``.jpg``.

    Returns:
        The folder.

    Raises:
        DataError: the folder exists and is not empty, or cannot be written.
        InputError: the suffix is another.
    """
    if suffix not in (".png", ".jpg"):
        raise InputError(f"suffix is {suffix!r}; expected .png or .jpg")
    folder, style = Path(folder), style or SceneConfig()
    parts = {"train2017": Scenes(train, seed, style), "val2017": Scenes(val, VALIDATION_SEED, style)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"scenes cannot be written to {folder}: it exists. Delete it, or choose another folder.")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
            whole = Path(made) / "whole"
            for part, source in parts.items():
                _write_part(whole, part, source, suffix)
            if folder.exists():
                folder.rmdir()
            os.replace(whole, folder)
    except OSError as error:
        raise DataError(f"scenes cannot be written to {folder}: {error}") from None
    return folder


def _write_part(folder: Path, part: str, source: Scenes, suffix: str) -> None:
    """The images of a part, and its annotations."""
    (folder / part).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = itertools.count(1)
    for index in range(len(source)):
        picture, target = source.samples([index])[0]
        name = f"{index + 1:012}{suffix}"
        Image.fromarray(picture[0].numpy()).save(folder / part / name, quality=95)
        height, width = picture.shape[-2:]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            annotations.append(_annotation(next(numbers), index + 1, box, label))
    classes = scene_classes(source.style)
    content = {
        "info": {"description": "glyph scenes rendered by netaug_fx", "version": "1.0"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name, "supercategory": "character"} for k, name in enumerate(classes)],
    }
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(number: int, image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    corners = [x1, y1, x2, y1, x2, y2, x1, y2]
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "segmentation": [corners],
        "iscrowd": 0,
    }
