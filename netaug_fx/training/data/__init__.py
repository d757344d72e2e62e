"""Data sets for classification, by name: what `load_task` reads, and the batches that `make_loaders` makes of it.

Read `sources` first: it maps names to loaders. `docs/data.md` lists the names and their layouts on disk.
"""

from netaug_fx.training.data.config import DataConfig, GlyphConfig
from netaug_fx.training.data.glyphs import glyph_batch
from netaug_fx.training.data.loaders import EpochOrder, make_loaders
from netaug_fx.training.data.sources import load_task, own_side
from netaug_fx.training.data.task import Batch, ImageSource, Problem, StreamSource, Task, TensorImages
from netaug_fx.training.data.transforms import Augmentation

__all__ = [
    "Augmentation",
    "Batch",
    "DataConfig",
    "EpochOrder",
    "GlyphConfig",
    "ImageSource",
    "Problem",
    "StreamSource",
    "Task",
    "TensorImages",
    "glyph_batch",
    "load_task",
    "make_loaders",
    "own_side",
]
