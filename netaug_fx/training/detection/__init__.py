"""Data sets for detection, by name: what `load_detection_task` reads, and the batches that `make_loaders` makes of it.

Read `sources` first: it maps names to loaders. `annotations` says what a target is. `docs/data.md` lists the names and
their layouts on disk.
"""

from netaug_fx.training.detection.annotations import Skipped, Target
from netaug_fx.training.detection.changes import BoxChanges, to_own_size
from netaug_fx.training.detection.data_config import DetectionDataConfig, SceneConfig
from netaug_fx.training.detection.detection_task import DetectionBatch, DetectionSource, DetectionTask
from netaug_fx.training.detection.loaders import make_loaders
from netaug_fx.training.detection.scene_data import Scenes, write_coco
from netaug_fx.training.detection.scenes import scene_batch
from netaug_fx.training.detection.sources import load_detection_task

__all__ = [
    "BoxChanges",
    "DetectionBatch",
    "DetectionDataConfig",
    "DetectionSource",
    "DetectionTask",
    "SceneConfig",
    "Scenes",
    "Skipped",
    "Target",
    "load_detection_task",
    "make_loaders",
    "scene_batch",
    "to_own_size",
    "write_coco",
]
