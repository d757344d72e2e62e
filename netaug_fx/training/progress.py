"""How a run is followed: a progress bar on a terminal, plain lines in a file, a pipe or a notebook of logs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress(Protocol):
    """What the training loop tells about itself."""

    def message(self, text: str) -> None:
        """Say something once."""

    def start_arm(self, arm: str, *, total: int, done: int, unit: str = "step") -> None:
        """An arm of ``total`` steps, or other units, starts, or goes on after ``done``."""

    def advance(self) -> None:
        """One step is done."""

    def end_epoch(self, arm: str, row: dict[str, float], epochs: int) -> None:
        """An epoch is done; ``row`` has its metrics."""


# Metrics of an epoch by their key, how they are called in a line, and how they are written.
_TRAINING = (("train_loss", "loss", ".3f"), ("train_accuracy", "accuracy", ".1%"))
_VALIDATION = (
    ("val_loss", "loss", ".3f"),
    ("val_accuracy", "accuracy", ".1%"),
    ("val_map", "mAP", ".1%"),
    ("val_map_50", "mAP at 0.5", ".1%"),
)


def describe(row: dict[str, float]) -> str:
    """The metrics of an epoch in one line."""
    parts = (f"train {_told(row, _TRAINING)}", f"validation {_told(row, _VALIDATION)}")
    return "  |  ".join(parts)


def _told(row: dict[str, float], shown: Sequence[tuple[str, str, str]]) -> str:
    return "  ".join(f"{name} {row[key]:{style}}" for key, name, style in shown if key in row)


class Silent:
    """Says nothing: for the processes of a run that are not the first."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def message(self, text: str) -> None:
        """Say nothing."""

    def start_arm(self, arm: str, *, total: int, done: int, unit: str = "step") -> None:
        """Say nothing."""

    def advance(self) -> None:
        """Say nothing."""

    def end_epoch(self, arm: str, row: dict[str, float], epochs: int) -> None:
        """Say nothing."""


class Lines(Silent):
    """One plain line for each epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        """Print ``text`` as one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start_arm(self, arm: str, *, total: int, done: int, unit: str = "step") -> None:
        """Say how long the arm is and where it starts."""
        resumed = f", resuming after {unit} {done}" if done else ""
        self.message(f"{arm}: {total} {unit}s{resumed}")

    def end_epoch(self, arm: str, row: dict[str, float], epochs: int) -> None:
        """Print the metrics of an epoch."""
        self.message(f"{arm} epoch {row['epoch']:.0f}/{epochs}  {describe(row)}")


class TerminalBar(Silent):
    """A bar for each arm, with the last epoch's metrics beside it."""

    def __init__(self, console: Console) -> None:
        self.bar = Bar(
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> TerminalBar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def message(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self.bar.console.print(text, highlight=False, markup=False)

    def start_arm(self, arm: str, *, total: int, done: int, unit: str = "step") -> None:
        """Add the arm's bar."""
        self.task = self.bar.add_task(arm, total=total, completed=done, metrics="")

    def advance(self) -> None:
        """Move the bar by one step."""
        if self.task is not None:
            self.bar.advance(self.task)

    def end_epoch(self, arm: str, row: dict[str, float], epochs: int) -> None:
        """Show the metrics of an epoch beside the bar."""
        if self.task is not None:
            score = row["val_accuracy"] if "val_accuracy" in row else row["val_map"]
            self.bar.update(self.task, metrics=f"val {score:.1%}")


def make_progress(*, main_process: bool) -> Lines | TerminalBar | Silent:
    """The way of following a run that fits where its output goes."""
    if not main_process:
        return Silent()
    console = Console()
    return TerminalBar(console) if console.is_terminal else Lines(console)
