"""Lets torchvision, and so timm, be imported beside a torch build that its compiled extension does not load with.

torchvision registers fake kernels for two operators of its extension while it is imported, which fails where the
extension did not load. Declaring the two operators first is enough for every net whose forward does not call them;
nets that need ``nms`` itself are not run here. Where the extension loads, nothing is done.

Run as a file, it puts itself into the environment of the Python that runs it, so that each of its processes declares
the operators when it first imports torchvision (``make`` does so in ``.venv``).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # dropping a library undoes its declarations


def install() -> bool:
    """Declares torchvision's operators if its extension does not load; returns whether that was needed."""
    if _declared or "torchvision" in sys.modules or _extension_loads():
        return bool(_declared)
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return True
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
    import torch

    for file in Path(folders[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(file))
        except (OSError, ImportError):
            continue
        return True
    return False


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds nothing itself, but installs the shim just before torchvision is found."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            install()


def install_when_imported() -> None:
    """Installs the shim when this process first imports torchvision."""
    sys.meta_path.insert(0, _WhenImported())


def main() -> None:
    """Puts the shim into this Python's environment, where torchvision is there and does not load."""
    if _extension_loads():
        return
    site = Path(sysconfig.get_path("purelib"))
    shutil.copyfile(__file__, site / "torchvision_shim.py")
    (site / "torchvision_shim.pth").write_text("import torchvision_shim; torchvision_shim.install_when_imported()\n")
    print(f"torchvision's extension does not load with this torch: its operators are declared by {site}")


if __name__ == "__main__":
    main()
