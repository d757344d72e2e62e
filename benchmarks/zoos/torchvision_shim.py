"""Lets torchvision, and so timm, be imported beside a torch build that its compiled extension does not load with.

torchvision registers fake kernels for two operators of its extension while it is imported, which fails where the
extension did not load. Declaring the two operators first is enough for every net whose forward does not call them;
nets that need ``nms`` itself are not run here. Where the extension loads, nothing is done.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # dropping a library undoes its declarations


def install() -> bool:
    """Declares torchvision's operators if its extension does not load; returns whether that was needed."""
    if _declared or "torchvision" in sys.modules or _extension_loads():
        return bool(_declared)
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return True


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        return True  # without torchvision there is nothing to help
    for file in Path(folders[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(file))
        except (OSError, ImportError):
            continue
        return True
    return False
