"""Imported last by the process that all others are forked from: loads what exporting and counting load when first used.

No gradient is computed here, since threads of torch's autograd do not survive a fork.
"""

import gc
import tempfile
import threading
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.coverage_check import count, exported
from netaug_fx.passes.running import SELDOM

torch.set_num_threads(1)
# torch.fx draws progress bars. A thread of theirs may hold their lock while a process is forked, which then waits for
# it for ever; and the lock is one for all processes: one that is ended while it holds it would stop all others.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())
_NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
_INPUTS = ((torch.zeros(2, 3, 8, 8),), {})
with tempfile.TemporaryDirectory() as _folder:
    _NET(*_INPUTS[0])
    count(_NET, _INPUTS)
    exported(_NET, _INPUTS, Path(_folder) / "warm.onnx")
# Half of the time would go into collections that find nothing.
gc.freeze()
gc.set_threshold(*SELDOM)
