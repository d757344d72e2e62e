"""Functions run in several processes that know of each other, as `torchrun` starts them, but with the imports done."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.multiprocessing.spawn import ProcessException

from netaug_fx.cli import main
from netaug_fx.training import engine

PRELOADED = ["netaug_fx.training.commands", "netaug_fx.training.run", "netaug_fx.training.evolve_run"]
"""What `conftest.py` has imported once for all processes that are forked from one server."""


def launch(function: Callable[..., None], *arguments: Any, folder: Path, processes: int = 2) -> list[str]:
    """What each process printed.

    Args:
        function: Of a module, called in each process with the arguments.
        arguments: Anything that can be pickled.
        folder: Where what they print goes.
        processes: How many there are.

    Raises:
        AssertionError: One of them failed or was killed; the others have been ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printed = [folder / f"rank-{rank}.txt" for rank in range(processes)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work = (processes, port, printed, function, arguments)
    try:
        multiprocessing.start_processes(_enter, work, nprocs=processes, start_method="forkserver")
    except ProcessException as error:
        raise AssertionError("\n".join([str(error), *(path.read_text() for path in printed)])) from error
    return [path.read_text() for path in printed]


def _enter(
    rank: int, processes: int, port: int, printed: Sequence[Path], function: Callable[..., None], arguments: Any
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        os.environ[name] = str(rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = str(processes)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    out = os.open(printed[rank], os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    function(*arguments)


def command_line(*words: str) -> None:
    """``netaug-fx`` with these words."""
    main(words)


def killed_at_step(rank: int, step: int, *words: str) -> None:
    """``netaug-fx`` with these words, killed in one process within a step, counted from 1 over all arms."""
    gradients, calls = engine._gradients, []

    def killing(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == step and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return gradients(*arguments)

    engine._gradients = killing
    main(words)
