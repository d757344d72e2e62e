"""Holding out a part of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Names of the part to validate on, in the order of preference.
TRAINING_PARTS = ("train", "training")
VALIDATION_PARTS = ("val", "validation", "valid", "dev", "test")


def stratified_split(labels: Sequence[int], val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a training and a validation part, both ascending, with each class divided in the same proportion.

    A class with at least two members is in both parts; a single member is for training.
    """
    generator = torch.Generator().manual_seed(seed)
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    train: list[int] = []
    val: list[int] = []
    for label in sorted(members):
        indices = torch.as_tensor(members[label])[torch.randperm(len(members[label]), generator=generator)].tolist()
        held_out = min(max(round(len(indices) * val_fraction), 1), len(indices) - 1)
        val += indices[:held_out]
        train += indices[held_out:]
    return sorted(train), sorted(val)
