"""Random numbers that follow from a seed, and leave the caller's as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.random import fork_rng


@contextmanager
def generators_kept(*, begin_cuda: bool = False) -> Iterator[None]:
    """After it the global generators (torch's, NumPy's and Python's) are as they were before.

    Args:
        begin_cuda: Also those of GPUs that were not used yet, which begins their use: processes can no longer be forked
            then.
    """
    python, numpy = random.getstate(), np.random.get_state()
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = torch.cuda.device_count() if begin_cuda or begun else 0
    try:
        with fork_rng(devices=range(gpus)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it the global generators follow from a seed; after it they are as they were. Threads share them."""
    with generators_kept(begin_cuda=True):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
