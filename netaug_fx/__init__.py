"""netaug_fx: train a tiny net inside a wider one that shares its weights, and deploy the tiny net.

>>> import torch, netaug_fx
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> supernet = netaug_fx.augment(model, ratio=3)
>>> tiny = netaug_fx.extract(supernet)
"""

from importlib.metadata import PackageNotFoundError, version

from netaug_fx.api import augment, inspect
from netaug_fx.calibration import calibrate_
from netaug_fx.distillation import Distillation
from netaug_fx.enlargement import Enlarged, enlarge
from netaug_fx.errors import NetAugError
from netaug_fx.evolution import evolve
from netaug_fx.inspection import Inspection
from netaug_fx.passes.extract import extract
from netaug_fx.passes.graph import Group, Pin
from netaug_fx.passes.report import Report
from netaug_fx.passes.verify import verify
from netaug_fx.resetting import reset_
from netaug_fx.sorting import sort_channels_
from netaug_fx.step import Step, step
from netaug_fx.supernet import Supernet

try:
    __version__ = version("netaug_fx")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Distillation",
    "Enlarged",
    "Group",
    "Inspection",
    "NetAugError",
    "Pin",
    "Report",
    "Step",
    "Supernet",
    "augment",
    "calibrate_",
    "enlarge",
    "evolve",
    "extract",
    "inspect",
    "reset_",
    "sort_channels_",
    "step",
    "verify",
]
