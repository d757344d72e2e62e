"""The journal of a search: every score as it comes in, so that nothing finished is done again after a kill."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netaug_fx.atomic import atomic_open
from netaug_fx.errors import CheckpointError, InputError, RunError

FORMAT = 2


class Journal:
    """Scores by step and candidate, in a file of JSON lines; trained weights beside it, one file each."""

    def __init__(self, file: Path | None, fingerprint: str) -> None:
        """Opens a journal, or begins one.

        Args:
            file: Where it is kept; None keeps it in memory.
            fingerprint: Of the search: what it starts from and all that decides its way.

        Raises:
            CheckpointError: the file is of another search, or no journal.
            InputError: there can be no file.
        """
        self.file = file
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.kept: dict[tuple[int, str], Mapping[str, Tensor]] = {}
        head = {"format": FORMAT, "search": fingerprint}
        if file is None:
            return
        if file.is_dir():
            raise InputError(f"journal {str(file)!r} is a folder; give a file, such as {str(file / 'journal.jsonl')!r}")
        try:
            if file.exists():
                self._read(file, head)
            else:
                _write(file, [json.dumps(head)])
        except OSError as error:
            raise InputError(f"journal {str(file)!r} cannot be kept there: {error}; give another file") from error

    def _read(self, file: Path, head: dict[str, Any]) -> None:
        text = file.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        if not lines or _parsed(lines[0]) != head:
            raise CheckpointError(
                f"{file} is the journal of another search (another model or other weights in it, another budget, step "
                "or seed), or none. Bring back what it was begun with, or give another file"
            )
        whole = [lines[0]]
        for line in lines[1:]:
            row = _parsed(line)
            if isinstance(row, dict) and {"step", "candidate", "score"} <= row.keys():
                whole.append(line)
                self.rows[row["step"], row["candidate"]] = row
        if whole != lines or not text.endswith("\n"):  # as a kill leaves it, in the middle of a line
            _write(file, whole)

    def score(self, step: int, candidate: str) -> float | None:
        """The score of a candidate, -inf of one that came to none; None if it is not finished."""
        row = self.rows.get((step, candidate))
        if row is None:
            return None
        return -math.inf if row["score"] is None else float(row["score"])

    def weights(self, step: int, candidate: str) -> Mapping[str, Tensor] | None:
        """The weights that its training left, if it left any.

        Raises:
            CheckpointError: their file is gone or broken.
        """
        key = step, candidate
        if self.file is None or key in self.kept:
            return self.kept.get(key)
        if not self.rows[key].get("weights"):
            return None
        file = self._weights_file(step, candidate)
        try:
            weights: Mapping[str, Tensor] = torch.load(file, weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{file}, the weights of {candidate} in step {step + 1}, cannot be read ({type(error).__name__}: "
                f"{error}). Bring it back, or delete the candidate's line in {self.file}: it is then evaluated again"
            ) from error
        return weights

    def add(
        self,
        step: int,
        candidate: str,
        score: float,
        macs: int,
        resolution: int,
        seconds: float,
        weights: Mapping[str, Tensor] | None,
    ) -> None:
        """Writes a score down; the weights first, so that a line never names a file that is not there.

        Raises:
            RunError: it cannot be written.
        """
        row = {"step": step, "candidate": candidate, "score": score if math.isfinite(score) else None}
        row |= {"macs": macs, "resolution": resolution, "seconds": round(seconds, 2), "weights": weights is not None}
        self.rows[step, candidate] = row
        if self.file is None:
            if weights is not None:
                self.kept[step, candidate] = {name: value.clone() for name, value in weights.items()}
            return
        try:
            if weights is not None:
                with atomic_open(self._weights_file(step, candidate)) as stream:
                    torch.save(dict(weights), stream)
            _append(self.file, json.dumps(row))
        except OSError as error:
            raise RunError(
                f"the score of {candidate} cannot be written to {self.file}: {error}. Make room, and call again: what "
                "was written before is kept"
            ) from error

    def _weights_file(self, step: int, candidate: str) -> Path:
        assert self.file is not None
        name = candidate.replace(" ", "-").replace("/", "_")
        return self.file.with_name(f"{self.file.stem}-weights") / f"{step}-{name}.pt"


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _write(file: Path, lines: Sequence[str]) -> None:
    with atomic_open(file) as stream:
        stream.write("".join(f"{line}\n" for line in lines).encode())


def _append(file: Path, line: str) -> None:
    """One whole line, on the disk before it is relied on."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
        stream.flush()
        os.fsync(stream.fileno())
