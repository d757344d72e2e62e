"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed.

A rename inside one folder is atomic on POSIX and on Windows, so a reader, a full disk, an exception or a kill sees
the former file or the new one, never a half.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary file next to ``path`` for code that opens files itself, and moves it to ``path`` at the end.

    The folder is created if missing. The temporary file keeps the suffix of ``path``, since some writers look at it.
    If the block raises, the temporary file is deleted and what was at ``path`` before stays.

    Raises:
        OSError: The folder cannot be created or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=f".tmp{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, _mode(path))
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str], mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Opens a file that replaces ``path`` when the block ends without an exception; text is UTF-8.

    Raises:
        OSError: The file cannot be written; what was at ``path`` before stays.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes ``data`` to ``path`` atomically and returns the path."""
    with atomic_open(path, "wb") as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes ``text`` to ``path`` as UTF-8, atomically, and returns the path."""
    with atomic_open(path, "w") as file:
        file.write(text)
    return Path(path)


def _mode(path: Path) -> int:
    """The permissions a plain ``open`` would have left: those of the file replaced, else what the umask allows."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync(path: Path) -> None:
    """Puts the file's data on disk before the rename is: otherwise a power cut may leave an empty file."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Puts the rename itself on disk, where the system lets a folder be opened (Windows does not)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
