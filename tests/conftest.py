"""Settings for every test: one thread, the same random numbers in every run.

``pytest --hypothesis-profile explore`` draws new examples each time instead of the same ones.
"""

import gc
import multiprocessing
import random

import pytest
import torch
from hypothesis import settings

from netaug_fx.passes.running import SELDOM
from tests.netaug_fx.launching import PRELOADED

torch.set_num_threads(1)
gc.set_threshold(*SELDOM)
multiprocessing.set_forkserver_preload(PRELOADED)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=1000)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Each test starts from the same global generators, whatever ran before it."""
    random.seed(0)
    torch.manual_seed(0)
