"""Stopping between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

from netaug_fx.errors import RunError


class Interrupted(RunError):
    """The user, or the machine's scheduler, asked the run to stop; ``run`` can be resumed."""

    exit_code = 130

    def __init__(self, run: Path, verb: str) -> None:
        super().__init__(f"interrupted; everything so far is saved. Continue with: netaug-fx {verb} --resume {run}")


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM sets ``requested``; a second one stops at once, as without it."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

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
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
