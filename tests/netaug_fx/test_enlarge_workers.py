"""Candidates evaluated side by side: workers that die, evaluations that fail, and random numbers."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netaug_fx.enlargement import Candidate
from netaug_fx.errors import InputError, RunError
from tests.netaug_fx.growing import like_depth, search

CALLS: list[int] = []
BESIDE, RELEASE = Event(), Event()


class Threads(ThreadPoolExecutor):
    """Sets ``RELEASE`` once everything that was handed in has been told to end."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(*args, **kwargs)
        self.told = [*getattr(self, "told", []), False]
        at, cancel = len(self.told) - 1, future.cancel

        def told() -> bool:
            done = cancel()
            self.told[at] = True
            if all(self.told):
                RELEASE.set()
            return done

        future.cancel = told  # type: ignore[method-assign]
        return future


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    CALLS.clear()
    BESIDE.clear()
    RELEASE.clear()


def fails_first(model: nn.Module, resolution: int) -> float:
    CALLS.append(resolution)
    if len(CALLS) == 1:
        raise ValueError("no more memory")
    RELEASE.wait(60)
    return 0.0


def fails_beside_another(model: nn.Module, resolution: int) -> float:
    CALLS.append(resolution)
    if len(CALLS) == 1:
        BESIDE.wait(60)
        raise ValueError("no more memory")
    BESIDE.set()
    RELEASE.wait(60)
    return 0.0


def test_candidates_in_the_queue_do_not_run_once_one_has_failed() -> None:
    with Threads(1) as threads, pytest.raises(RunError, match="evaluate failed on width of 0: ValueError"):
        search(fails_first, executor=threads)
    assert len(CALLS) <= 2, "the one that failed, and one that was under way"


def test_what_runs_beside_one_that_fails_is_kept(tmp_path: Path) -> None:
    """Its score was thrown away, and had to be found again."""
    journal = tmp_path / "journal.jsonl"
    with Threads(2) as threads, pytest.raises(RunError, match="ValueError: no more memory"):
        search(fails_beside_another, executor=threads, journal=journal)
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert rows, "the one beside it; another may have begun before the failure was seen"


def diverges_on_larger_images(model: nn.Module, resolution: int) -> float:
    return float("nan") if resolution > 8 else like_depth(model, resolution)


def test_a_candidate_without_a_finite_score_is_out_of_the_choice(tmp_path: Path) -> None:
    """It ended the search, and every one that went on from its journal."""
    journal = tmp_path / "journal.jsonl"
    with pytest.warns(UserWarning, match="evaluate gave nan for resolution, which is out of the choice"):
        found = search(diverges_on_larger_images, journal=journal)
    (out,) = (candidate for candidate in found.steps[0].candidates if candidate.resolution > 8)
    assert out.score == -float("inf")
    assert found.steps[0].accepted.resolution == 8
    assert "NaN" not in journal.read_text()
    assert "Infinity" not in journal.read_text()
    again = search(lambda model, resolution: pytest.fail("evaluated again"), journal=journal)
    assert again.steps == found.steps


@pytest.mark.filterwarnings("ignore:evaluate gave")
def test_a_step_in_which_everything_diverges_says_what_to_change() -> None:
    with pytest.raises(RunError, match=r"no candidate of step 1 got a finite score.*another journal"):
        search(lambda model, resolution: float("inf"))


def draws(model: nn.Module, resolution: int) -> float:
    return torch.rand(()).item() + np.random.rand() + random.random()


def test_random_numbers_of_an_evaluation_follow_from_the_seed_and_the_caller_s_go_on() -> None:
    """NumPy's and Python's were not seeded, and torch's stayed so."""

    def state() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]]

    def begin() -> None:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

    begin()
    expected = state()
    begin()
    one = search(draws, seed=1)
    assert state() == expected
    assert search(draws, seed=1).steps == one.steps
    assert search(draws, seed=2).steps != one.steps
    begin()
    with ThreadPoolExecutor(2) as threads:
        search(like_depth, executor=threads)
    assert state() == expected


@pytest.mark.parametrize(
    ("executor", "evaluate", "words"),
    [
        (42, like_depth, "executor must have a submit that returns futures.*not 42"),
        (lambda: 42, like_depth, "executor must make something with a submit, and made int"),
        (lambda: None, lambda model, resolution: 0.0, "evaluate cannot be sent to an executor.*function of a module"),
        (None, 3, "evaluate must be a function of a net and a resolution, not 3"),
    ],
    ids=["number", "makes none", "lambda", "no function"],
)
def test_what_cannot_evaluate_is_refused(executor: Any, evaluate: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        search(evaluate, executor=executor)


def test_a_class_of_executors_makes_one() -> None:
    assert search(executor=ThreadPoolExecutor).steps == search().steps


def test_threads_and_processes_give_what_one_process_gives() -> None:
    expected = search().steps
    scores: list[Candidate] = []
    with ThreadPoolExecutor(2) as threads:
        assert search(executor=threads, on_score=scores.append).steps == expected
    assert sorted(map(str, scores)) == sorted(map(str, expected[0].candidates))
    assert search(executor=processes).steps == expected


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=get_context("forkserver"))


class DiesOnce:
    """Kills its worker at the first net with larger images."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, model: nn.Module, resolution: int) -> float:
        if resolution > 8 and not self.mark.exists():
            self.mark.write_text("died")
            os._exit(1)
        return like_depth(model, resolution)


def test_a_candidate_whose_worker_dies_is_tried_again(tmp_path: Path) -> None:
    expected = search().steps
    found = search(DiesOnce(tmp_path / "mark"), executor=processes, journal=tmp_path / "j.jsonl")
    assert (tmp_path / "mark").exists()
    assert found.steps == expected


class Dies:
    def __call__(self, model: nn.Module, resolution: int) -> float:
        os._exit(1)


def test_workers_that_keep_dying_end_the_search_with_what_they_were_at() -> None:
    with pytest.raises(RunError, match=r"workers died 3 times while .*depth of 0"):
        search(Dies(), executor=processes)
    with processes() as pool, pytest.raises(RunError, match="give enlarge a function that makes one"):
        search(Dies(), executor=pool)
