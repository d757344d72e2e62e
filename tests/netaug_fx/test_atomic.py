"""Atomic writing: whole files or none, and nothing left behind."""

import os
from pathlib import Path

import pytest

from netaug_fx.atomic import atomic_open, atomic_path, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_text_arrive_whole_and_alone(tmp_path: Path) -> None:
    assert write_bytes(tmp_path / "a.bin", b"\x00\xff") == tmp_path / "a.bin"
    write_text(tmp_path / "b.txt", "ä\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b.txt").read_bytes() == "ä\n".encode()
    assert names(tmp_path) == ["a.bin", "b.txt"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "x" / "y" / "z.txt", "z")
    assert (tmp_path / "x" / "y" / "z.txt").read_text() == "z"


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_an_error_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, mode: str) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def write_half() -> None:
        with atomic_open(path, mode) as file:  # type: ignore[arg-type]
            file.write("half" if mode == "w" else b"half")
            file.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.onnx", "old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".onnx"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.onnx"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_a_plain_open(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("x")
    path = write_text(tmp_path / "atomic.txt", "x")
    assert path.stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
    path.chmod(0o600)
    write_text(path, "y")
    assert path.stat().st_mode & 0o777 == 0o600
