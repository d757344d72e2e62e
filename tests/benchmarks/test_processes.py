"""Functions in processes of their own: answers, progress, ends without an answer, and interruptions."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Processes, Silent


def adds(answer: Connection, a: int, b: int) -> None:
    for step in range(a):
        answer.send(step)
    answer.send({"sum": a + b})


def dies(answer: Connection) -> None:
    os._exit(3)


def hangs(answer: Connection, started: Path) -> None:
    started.touch()
    time.sleep(600)


def test_an_answer_comes_after_what_tells_of_progress() -> None:
    heard: list[int] = []
    assert Processes().ask(adds, 3, 4, hear=heard.append) == {"sum": 7}
    assert heard == [0, 1, 2]


def test_a_process_that_dies_says_how() -> None:
    with pytest.raises(Silent, match=r"its process ended with exit code 3; it held \d+\.\d GiB when last seen"):
        Processes().ask(dies)


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    processes = Processes()
    with pytest.raises(Silent, match=r"took longer than 0\.1 seconds"):
        processes.ask(hangs, tmp_path / "started", seconds=0.1)
    assert not processes._running


def test_results_come_as_they_are_ready_and_one_that_dies_takes_no_other_with_it() -> None:
    processes = Processes()

    def one(number: int) -> Any:
        try:
            return processes.ask(adds, number, 1) if number else processes.ask(dies)
        except Silent:
            return "silent"

    # without `hear` the first number sent is the answer
    assert sorted(map(str, processes.each(one, [0, 1, 2], jobs=2))) == ["0", "0", "silent"]


def test_an_interruption_ends_what_runs(tmp_path: Path) -> None:
    processes = Processes()

    def one(name: str) -> Any:
        if name == "interrupted":
            while not (tmp_path / "hangs").exists():
                time.sleep(0.05)
            raise KeyboardInterrupt
        return processes.ask(hangs, tmp_path / name)

    with pytest.raises(KeyboardInterrupt):
        list(processes.each(one, ["hangs", "interrupted"], jobs=2))
    assert not processes._running
