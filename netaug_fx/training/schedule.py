"""What changes over a run as a function of the step: the learning rate, and which widths are drawn.

Functions of counters, not objects with state: a resumed run needs nothing but its step and epoch.
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, highest: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to ``highest``, then half a cosine down to zero, by iteration (NetAug, section 4.1)."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return highest * 0.5 * (1 + math.cos(math.pi * done))


def in_phase_one(epoch: int, *, epochs: int, phase_two: float) -> bool:
    """Whether stream widths are drawn too; in phase two they stay at the tiny net's, and only inner widths vary.

    Args:
        epoch: Counted from 0.
        epochs: Of the whole run.
        phase_two: Its last part; half of the epochs in the paper.
    """
    return epoch < phase_change(epochs, phase_two)


def phase_change(epochs: int, phase_two: float) -> int:
    """The first epoch of phase two, counted from 0."""
    return round(epochs * (1 - phase_two))


def scaled_rate(lr: float, lr_images: int | None, images: int) -> float:
    """The highest learning rate of steps of ``images`` images, in proportion to what ``lr`` is meant for."""
    return lr if lr_images is None else lr * images / lr_images
