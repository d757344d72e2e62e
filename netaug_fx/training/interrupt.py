"""Stopping between two steps instead of in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

from netaug_fx.errors import RunError

SAME_REQUEST = 2.0
"""Seconds in which another Ctrl-C is the first one once more, which the terminal gave to all and a launcher sent on."""


class Interrupted(RunError):
    """The user, or the machine's scheduler, asked the run to stop; ``run`` can be resumed."""

    exit_code = 130

    def __init__(self, run: Path, verb: str) -> None:
        super().__init__(f"interrupted; everything so far is saved. Continue with: netaug-fx {verb} --resume {run}")


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM sets ``requested``; a later Ctrl-C stops at once, as without it.

    Launchers and schedulers send one request to a process several times. So more SIGTERMs change nothing, and neither
    does Ctrl-C within two seconds.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self._since is not None

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only; elsewhere signals stay with their owner.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._since is None:
            self._since = time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                # Past Python's buffers, which the interrupted code may be in the middle of writing to.
                os.write(2, b"stopping after this step; Ctrl-C again in a moment stops at once\n")
        elif number == signal.SIGINT and time.monotonic() - self._since > SAME_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
