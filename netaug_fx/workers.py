"""Workers: nets judged in this process, or on an executor whose workers may die."""

from __future__ import annotations

import functools
import io
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from netaug_fx.errors import InputError, NetAugError, RunError
from netaug_fx.passes.copying import copy_model
from netaug_fx.seeded import seeded

Evaluate = Callable[[nn.Module, int], "float | tuple[float, Mapping[str, Tensor]]"]
"""Judges a net at a resolution: a score, higher is better, or the score and the state_dict after its training.

The resolution is the side of square images, and 0 for a net that takes none. A score that is not finite (of a training
that diverged) puts its candidate out of the choice. An attribute ``fingerprint``, where it has one, says what else
decides its scores: a journal of another one is refused.
"""

Outcome = tuple[str, float, "Mapping[str, Tensor] | None", float]
"""Name, score, trained weights where there are any, and seconds."""

_ATTEMPTS = 3  # of what is left of a step


class Workers:
    """Evaluates nets here, or on an executor whose workers may die."""

    def __init__(self, executor: Executor | Callable[[], Executor] | None, stack: ExitStack) -> None:
        """Takes an executor, or what makes one.

        Args:
            executor: As for ``enlarge``; None is this process.
            stack: Where executors that are made here are closed in the end.
        """
        self.stack = stack
        self.make: Callable[[], Any] | None = executor if _makes_executors(executor) else None
        self.executor: Any = None if self.make is not None else executor
        self.here = executor is None

    def evaluate(self, function: Evaluate, jobs: Mapping[str, tuple[nn.Module, int]], seed: int) -> Iterator[Outcome]:
        """Yields outcomes as they come in.

        Raises:
            RunError: ``function`` failed, or workers kept dying; what ran beside it is yielded first.
            InputError: the executor that was made is none.
        """
        if self.here:
            for name, (model, resolution) in jobs.items():
                # a copy, which may be trained
                judge = functools.partial(_judge, function, copy_model(model), resolution, seed)
                yield (name, *_guarded(name, judge))
            return
        left = dict(jobs)
        for _ in range(_ATTEMPTS):
            if not left:
                return
            try:
                for outcome in self._submitted(function, left, seed):
                    del left[outcome[0]]
                    yield outcome
            except BrokenExecutor as error:
                if self.make is None:
                    raise RunError(
                        f"a worker died ({error}), and this executor cannot be made anew: give enlarge a function that "
                        "makes one. What was finished is kept in the journal"
                    ) from error
                self.executor = None
        if left:
            raise RunError(
                f"workers died {_ATTEMPTS} times while {', '.join(left)} was evaluated; what was finished is kept"
            )

    def _submitted(self, function: Evaluate, jobs: Mapping[str, tuple[nn.Module, int]], seed: int) -> Iterator[Outcome]:
        if self.executor is None:
            self.executor = self._made()
        futures = {
            name: self.executor.submit(_judge_pickled, pickle.dumps((function, model)), resolution, seed)
            for name, (model, resolution) in jobs.items()
        }
        problems: list[BrokenExecutor | NetAugError] = []
        try:
            for name, future in _as_they_come(futures):
                if problems and future.cancelled():
                    continue
                try:
                    yield (name, *_guarded(name, functools.partial(_unpacked, future)))
                except BrokenExecutor as error:  # others may have finished before
                    problems.append(error)
                except NetAugError as error:  # others may be under way
                    problems.append(error)
                    _cancel(futures)
        finally:
            _cancel(futures)
        if problems:
            raise next((error for error in problems if isinstance(error, NetAugError)), problems[0])

    def _made(self) -> Any:
        assert self.make is not None
        made = self.make()
        if not callable(getattr(made, "submit", None)):
            raise InputError(f"executor must make something with a submit, and made {type(made).__name__}")
        if hasattr(made, "__exit__"):
            self.stack.push(made)
        return made


def _makes_executors(executor: Any) -> TypeGuard[Callable[[], Any]]:
    """Whether it makes executors: a function, or a class of them, which has a ``submit`` of its own."""
    return callable(executor) and (isinstance(executor, type) or not hasattr(executor, "submit"))


def check_executor(executor: Any, evaluate: Any) -> None:
    """Accepts what can evaluate.

    Raises:
        InputError: ``evaluate`` cannot be called, or not be sent to the executor; or ``executor`` is none.
    """
    if not callable(evaluate):
        raise InputError(f"evaluate must be a function of a net and a resolution, not {evaluate!r}")
    if executor is None:
        return
    if not _makes_executors(executor) and not callable(getattr(executor, "submit", None)):
        raise InputError(
            f"executor must have a submit that returns futures, or be a function that makes such a thing, not "
            f"{executor!r}"
        )
    try:
        pickle.dumps(evaluate)
    except Exception as error:  # of what classes a user's object may be
        raise InputError(
            f"evaluate cannot be sent to an executor ({type(error).__name__}: {error}): make it a function of a "
            "module, or an object of a class of one"
        ) from error


def _cancel(futures: Mapping[str, Future[Any]]) -> None:
    """Where one failed, or the user stops, those in the queue need not run."""
    for future in futures.values():
        future.cancel()


def _as_they_come(futures: Mapping[str, Future[Any]]) -> Iterator[tuple[str, Future[Any]]]:
    """Finished ones first, in the order in which they were handed in."""
    left = dict(futures)
    while left:
        name = next((name for name, future in left.items() if future.done()), None)
        if name is None:
            time.sleep(0.02)
            continue
        yield name, left.pop(name)


def _guarded(name: str, run: Callable[[], tuple[float, Any, float]]) -> tuple[float, Any, float]:
    try:
        return run()
    except (BrokenExecutor, NetAugError, KeyboardInterrupt):
        raise
    except Exception as error:  # evaluate is the user's own, and may fail in any way
        raise RunError(
            f"evaluate failed on {name}: {type(error).__name__}: {error}. What was finished is kept in the journal; "
            "call enlarge again once it is mended"
        ) from error


def _judge(function: Evaluate, model: nn.Module, resolution: int, seed: int) -> tuple[float, Any, float]:
    start = time.monotonic()
    with seeded(seed):
        found = function(model, resolution)
    score, weights = found if isinstance(found, tuple) else (found, None)
    return float(score), weights, time.monotonic() - start


def _judge_pickled(blob: bytes, resolution: int, seed: int) -> tuple[float, bytes | None, float]:
    function, model = pickle.loads(blob)
    score, weights, seconds = _judge(function, model, resolution, seed)
    if weights is None:
        return score, None, seconds
    stream = io.BytesIO()
    torch.save(dict(weights), stream)
    return score, stream.getvalue(), seconds


def _unpacked(future: Future[Any]) -> tuple[float, Any, float]:
    score, saved, seconds = future.result()
    return score, None if saved is None else torch.load(io.BytesIO(saved), weights_only=True), seconds
