"""Data sets for classification, by name: what `load_task` reads, and the batches that `make_loaders` makes of it.

Read `sources` first: it maps names to loaders. `docs/data.md` lists the names and their layouts on disk.
"""

from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.loaders import EpochOrder, make_loaders
from netaug_fx.training.data.sources import load_task
from netaug_fx.training.data.task import Batch, ImageSource, Task, TensorImages
from netaug_fx.training.data.transforms import Augmentation

__all__ = [
    "Augmentation",
    "Batch",
    "DataConfig",
    "EpochOrder",
    "ImageSource",
    "Task",
    "TensorImages",
    "load_task",
    "make_loaders",
]
