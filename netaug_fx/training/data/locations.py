"""Where data sets lie, and errors that say what is missing and how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from netaug_fx.errors import DataError


class Located(Protocol):
    """Settings that say which data set, and where it lies."""

    @property
    def name(self) -> str:
        """The name of the set."""
        ...

    @property
    def dir(self) -> str | None:
        """The folder that holds it."""
        ...


def need_folder(config: Located, layout: str, *expected: str) -> Path:
    """The folder ``data.dir``, after a look that ``expected`` is in it.

    Args:
        config: The settings.
        layout: What the folder should hold and how to get it, for errors.
        expected: Paths in the folder that must exist.

    Raises:
        DataError: it is not given, does not exist, or lacks something.
    """
    if config.dir is None:
        raise DataError(f"--data {config.name} needs --data-dir DIR (setting data.dir). {layout}")
    root = Path(config.dir)
    if not root.is_dir():
        raise DataError(f"--data-dir {root}: there is no such folder. {layout}")
    missing = [path for path in expected if not (root / path).exists()]
    if missing:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"data set {config.name}: --data-dir {root} has no {', no '.join(missing)} (found: {found}). {layout}"
        )
    return root
