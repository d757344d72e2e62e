"""Functions run in processes of their own, which know of each other as under `torchrun`, but with the imports done."""

from __future__ import annotations

import os
import runpy
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

PRELOADED = [
    *("netaug_fx.training.commands", "netaug_fx.training.run", "netaug_fx.training.evolve_run"),
    *("pytorch_lightning", "timm", "transformers.trainer"),
]
"""What `conftest.py` has imported once for all processes that are forked from one server."""


def launch(function: Callable[..., None], *arguments: Any, folder: Path, processes: int = 2) -> list[str]:
    """What each process printed.

    Args:
        function: Of a module, called in each process with the arguments.
        arguments: Anything that can be pickled.
        folder: Where what they print goes.
        processes: How many there are; one alone is told nothing of others.

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
    if processes > 1:
        os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    out = os.open(printed[rank], os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    function(*arguments)


def script(file: Path) -> None:
    """A program, run in its folder."""
    os.chdir(file.parent)
    runpy.run_path(str(file), run_name="__main__")


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
