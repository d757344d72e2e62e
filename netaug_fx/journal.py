"""The journal of a search: every score as it comes in, so that nothing finished is done again after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netaug_fx.atomic import atomic_open
from netaug_fx.errors import CheckpointError

FORMAT = 1


class Journal:
    """Scores by step and candidate, in a file of JSON lines; trained weights beside it, one file each."""

    def __init__(self, file: Path | None, fingerprint: str) -> None:
        """Args:
        file: Where it is kept; None keeps it in memory.
        fingerprint: Of the search: what it starts from and all that decides its way.

        Raises:
            CheckpointError: the file is of another search, or no journal.
        """
        self.file = file
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.kept: dict[tuple[int, str], Mapping[str, Tensor]] = {}
        head = {"format": FORMAT, "search": fingerprint}
        if file is not None and file.exists():
            self._read(file, head)
        elif file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(file) as stream:
                stream.write(f"{json.dumps(head)}\n".encode())

    def _read(self, file: Path, head: dict[str, Any]) -> None:
        lines = file.read_text(encoding="utf-8").splitlines()
        try:
            first = json.loads(lines[0]) if lines else None
        except json.JSONDecodeError:
            first = None
        if first != head:
            raise CheckpointError(
                f"{file} is the journal of another search (another model, budget, step or seed), or none. Bring back "
                "the arguments that it was begun with, or give another file"
            )
        whole = []
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a kill cut the last line short
                break
            whole.append(line)
            self.rows[row["step"], row["candidate"]] = row
        if len(whole) + 1 != len(lines):
            with atomic_open(file) as stream:
                stream.write("".join(f"{line}\n" for line in [lines[0], *whole]).encode())

    def score(self, step: int, candidate: str) -> float | None:
        """The score of a candidate; None if it is not finished."""
        row = self.rows.get((step, candidate))
        return None if row is None else float(row["score"])

    def weights(self, step: int, candidate: str) -> Mapping[str, Tensor] | None:
        """The weights that its training left, if it left any."""
        key = step, candidate
        if self.file is None or key in self.kept:
            return self.kept.get(key)
        file = self._weights_file(step, candidate)
        return torch.load(file, weights_only=True) if self.rows[key].get("weights") else None

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
        """Writes a score down; the weights first, so that a line never names a file that is not there."""
        row = {"step": step, "candidate": candidate, "score": score, "macs": macs, "resolution": resolution}
        row |= {"seconds": round(seconds, 2), "weights": weights is not None}
        self.rows[step, candidate] = row
        if self.file is None:
            if weights is not None:
                self.kept[step, candidate] = {name: value.clone() for name, value in weights.items()}
            return
        if weights is not None:
            with atomic_open(self._weights_file(step, candidate)) as stream:
                torch.save(dict(weights), stream)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _weights_file(self, step: int, candidate: str) -> Path:
        assert self.file is not None
        name = candidate.replace(" ", "-").replace("/", "_")
        return self.file.with_name(f"{self.file.stem}-weights") / f"{step}-{name}.pt"
