"""Functions run in processes of their own, several side by side: what breaks, hangs or dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

Item = TypeVar("Item")
Result = TypeVar("Result")

GIB = 2**30
_LOOK = 1.0  # seconds between looks at a process that has not answered
_GRACE = 5.0  # seconds to end in after the answer


class Silent(Exception):
    """A process ended, or its time was over, before it answered; says which."""


class Processes:
    """Processes that start from one in which slow imports were done already.

    Args:
        preload: Modules to import there.
    """

    def __init__(self, *preload: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._running: set[Any] = set()

    def ask(
        self,
        work: Callable[..., None],
        *arguments: Any,
        seconds: float = float("inf"),
        hear: Callable[[int], None] | None = None,
    ) -> Any:
        """What a function sends from a process of its own, which is ended then.

        Args:
            work: Called with a `Connection` to send to, and the arguments.
            arguments: Anything that can be pickled.
            seconds: The time that it may take.
            hear: Called with each whole number that is sent before the answer, such as steps that are done.

        Raises:
            Silent: there is no answer.
        """
        receiving, sending = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(sending, *arguments), daemon=True)
        process.start()
        self._running.add(process)
        sending.close()
        try:
            return _answer(process, receiving, seconds, hear)
        finally:
            self._running.discard(process)
            process.kill()
            process.join()
            receiving.close()

    def each(self, one: Callable[[Item], Result], items: Sequence[Item], *, jobs: int) -> Iterator[Result]:
        """Results as they are ready, from threads that `ask`; an interruption asks all processes to end.

        Args:
            one: Gives the result of an item.
            jobs: Items side by side.
        """
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for future in as_completed([pool.submit(one, item) for item in items]):
                    yield future.result()
            except BaseException:  # Ctrl-C too; it is raised again
                pool.shutdown(wait=False, cancel_futures=True)  # do not begin what nobody will read
                for process in list(self._running):
                    process.terminate()
                raise


def _answer(process: Any, receiving: Connection, seconds: float, hear: Callable[[int], None] | None) -> Any:
    start, most = time.monotonic(), 0.0
    try:
        while (left := start + seconds - time.monotonic()) > 0:
            if not receiving.poll(min(_LOOK, left)):
                most = max(most, _resident(process.pid))
                continue
            said = receiving.recv()
            if hear is None or not isinstance(said, int):
                process.join(_GRACE)
                return said
            hear(said)
    except EOFError:
        process.join(_GRACE)
        ended = f"its process ended with exit code {process.exitcode}"
        raise Silent(f"{ended}; it held {most:.1f} GiB when last seen") from None
    raise Silent(f"took longer than {seconds:g} seconds")


def _resident(pid: int | None) -> float:
    """What a process holds in memory, in GiB; 0 if it has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / GIB
    except psutil.NoSuchProcess:
        return 0.0
