"""From the name of a data set for detection to its images and boxes."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from netaug_fx.errors import DataError
from netaug_fx.training.detection import coco, scene_data, voc
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.detection.detection_task import DetectionTask

LOADERS: dict[str, Callable[[DetectionDataConfig, int], DetectionTask]] = {
    "scenes": scene_data.load_scenes,
    "coco": coco.load_coco,
    "voc": voc.load_voc,
}


def load_detection_task(config: DetectionDataConfig, seed: int) -> DetectionTask:
    """Read the data set that ``config`` names; only scenes depend on ``seed``.

    Boxes that cannot be used are no error: the task's ``notes()`` say how many there are of each kind.

    Raises:
        DataError: the name is unknown, or the set is missing, incomplete, or cannot be read.
    """
    if config.name in LOADERS:
        return LOADERS[config.name](config, seed)
    close = difflib.get_close_matches(config.name.lower(), LOADERS, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise DataError(
        f"--data {config.name}: there is no data set of that name for detection. {hint}Give one of: "
        f"{', '.join(map(repr, LOADERS))}; sets of your own in COCO's format are read as 'coco', see docs/data.md."
    )
