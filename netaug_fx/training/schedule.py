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


def in_phase_one(epoch: int, *, epochs: int, stream_fraction: float) -> bool:
    """Whether stream widths are drawn too; in phase two they stay at the tiny net's, and only inner widths vary."""
    return epoch < round(epochs * stream_fraction)
