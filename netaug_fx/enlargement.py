"""Greedy Network Enlarging: a small net grown to a budget of multiply-adds, step by step, by what helps most.

At each step every candidate (a stage wider, a stage deeper, larger images) is brought to the same multiply-adds and
evaluated; the best is accepted. ([GNE]: Greedy Network Enlarging, arXiv 2108.00177.)
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.candidates import DIMS, Change, Move, Net, enlarged, moves_of, net_of
from netaug_fx.errors import InputError, NetAugError, PlanError, RunError
from netaug_fx.example_inputs import checked_model, resolve_inputs
from netaug_fx.journal import Journal
from netaug_fx.passes.copying import copy_model

Evaluate = Callable[[nn.Module, int], "float | tuple[float, Mapping[str, Tensor]]"]
"""Judges a net at a resolution: a score, higher is better, or the score and the state_dict after its training.

An attribute ``fingerprint``, where it has one, says what else decides its scores: a journal of another one is refused.
"""

_ATTEMPTS = 3
_OVERSHOOT = 1.05  # a candidate further above its target is no fair one


@dataclass(frozen=True)
class Candidate:
    """One that was evaluated.

    Attributes:
        move: What was enlarged.
        macs: Multiply-adds of one image.
        resolution: Side of the images.
        score: What ``evaluate`` gave.
    """

    move: Move
    macs: int
    resolution: int
    score: float


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        target: The multiply-adds that all candidates were brought to.
        candidates: What was tried.
        accepted: The best of them.
        changes: What made its net out of the first one, this step included.
    """

    target: int
    candidates: tuple[Candidate, ...]
    accepted: Candidate
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Enlarged:
    """What a search came to.

    Attributes:
        model: The grown net, with the weights that its last training left where ``evaluate`` returns them.
        resolution: Side of the images that it takes.
        macs: Multiply-adds of one image.
        steps: The accepted steps, with all that was tried.
    """

    model: nn.Module
    resolution: int
    macs: int
    steps: tuple[Step, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """What made the net, for ``candidates.rebuilt``; plain JSON types."""
        return self.steps[-1].changes if self.steps else ()


def enlarge(
    model: nn.Module,
    *,
    macs: int,
    evaluate: Evaluate,
    step: float = 0.25,
    dims: Sequence[str] = DIMS,
    executor: Executor | Callable[[], Executor] | None = None,
    journal: str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    preserve: bool = False,
    pixels: int = 8,
    seed: int = 0,
    on_score: Callable[[Candidate], object] | None = None,
    on_step: Callable[[int, int, int], object] | None = None,
) -> Enlarged:
    """Grows a model to a budget of multiply-adds ([GNE], algorithm 1).

    Args:
        model: Any module; it is not changed.
        macs: Multiply-adds of one image that the net may have at the end.
        evaluate: Called with a net and the side of its images; returns a score, or a score and a state_dict, from which
            the net then goes on (inherited weights).
        step: By about how much multiply-adds grow in a step: 0.25 for a quarter. Steps are of one size, such that the
            last one ends at the budget.
        dims: What may be enlarged, of ``width``, ``depth`` and ``resolution``.
        executor: Where candidates are evaluated: one of ``concurrent.futures``, or anything with a ``submit`` that
            returns futures; or a function that makes one, which is called again when its workers die. None evaluates in
            this process. Nets and ``evaluate`` are pickled for it.
        journal: File that keeps the score of every candidate. A search that was killed goes on from it, and evaluates
            nothing again that is in it.
        example_inputs: As for ``augment``.
        preserve: New blocks are identities and new channels copies, so that a candidate starts as good as the net that
            it grew from. By default they are fresh.
        pixels: The side of the images grows by multiples of this.
        seed: Of all that is drawn.
        on_score: Called with each candidate as its score comes in.
        on_step: Called as a step begins: with its number from 1 on, how many candidates it has, and how many of these
            are in the journal.

    Returns:
        The grown net and the chain of accepted steps.

    Raises:
        InputError: an argument cannot be used, or the budget is below what the model has.
        PlanError: nothing of the model can be enlarged.
        RunError: ``evaluate`` failed, workers kept dying, or no candidate came near the next target. What was finished
            is in the journal.
        CheckpointError: the journal is of another search.

    Example:
        >>> import torch, netaug_fx
        >>> from netaug_fx.models import digits_net
        >>> def evaluate(model, resolution):  # in earnest: train for a minute, return the accuracy
        ...     return -sum(parameter.numel() for parameter in model.parameters())
        >>> found = netaug_fx.enlarge(digits_net(), macs=150_000, evaluate=evaluate, dims=["width"])
        >>> [str(step.accepted.move) for step in found.steps]
        ['width of blocks.0.body.project.conv']
    """
    _check(step, dims, pixels, macs)
    net = starting_net(model, macs, dims, example_inputs)
    with ExitStack() as stack:
        search = _fingerprint(net, macs, step, dims, preserve, pixels, seed, getattr(evaluate, "fingerprint", ""))
        book = Journal(Path(journal) if journal is not None else None, search)
        workers = _Workers(executor, stack)
        return _Search(net, macs, evaluate, step, dims, workers, book, preserve, pixels, seed, on_score, on_step).run()


def starting_net(model: nn.Module, macs: int, dims: Sequence[str], example_inputs: Any = None) -> Net:
    """What a search starts from.

    Raises:
        InputError: the budget is below what the model has.
        PlanError: nothing of it can be enlarged.
    """
    checked_model(model)
    net = net_of(model, resolve_inputs(model, example_inputs))
    if macs < net.macs:
        raise InputError(f"macs={macs:,} is below what {type(model).__name__} has: {net.macs:,} for one image")
    if not moves_of(net, dims):
        raise PlanError(
            f"{type(model).__name__} has nothing that could be enlarged in {', '.join(dims)}: see "
            "netaug_fx.inspect(model) for its groups and why widths stay"
        )
    return net


def _check(step: float, dims: Sequence[str], pixels: int, macs: int) -> None:
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf:
        raise InputError(f"step must be above 0: the part by which multiply-adds grow in a step, not {step!r}")
    if isinstance(dims, str) or not dims or not set(dims) <= set(DIMS):
        raise InputError(f"dims must be some of {', '.join(map(repr, DIMS))}, not {dims!r}")
    for name, value in (("pixels", pixels), ("macs", macs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be an integer of at least 1, not {value!r}")


def _fingerprint(net: Net, *settings: Any) -> str:
    shapes = {key: list(value.shape) for key, value in net.model.state_dict().items() if isinstance(value, Tensor)}
    content = json.dumps([shapes, net.resolution, net.macs, [repr(each) for each in settings]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class _Search:
    """A search under way."""

    def __init__(
        self,
        net: Net,
        macs: int,
        evaluate: Evaluate,
        step: float,
        dims: Sequence[str],
        workers: _Workers,
        journal: Journal,
        preserve: bool,
        pixels: int,
        seed: int,
        on_score: Callable[[Candidate], object] | None,
        on_step: Callable[[int, int, int], object] | None,
    ) -> None:
        self.net, self.macs, self.evaluate, self.step, self.dims = net, macs, evaluate, step, dims
        self.workers, self.journal, self.on_score, self.on_step = workers, journal, on_score, on_step
        self.preserve, self.pixels, self.seed = preserve, pixels, seed

    def run(self) -> Enlarged:
        steps: list[Step] = []
        net = self.net
        while left := round(math.log(self.macs / net.macs) / math.log(1 + self.step)):
            target = round(net.macs * (self.macs / net.macs) ** (1 / left))
            net, done = self._step(len(steps), net, target)
            steps.append(done)
        return Enlarged(net.model, net.resolution, net.macs, tuple(steps))

    def _step(self, number: int, net: Net, target: int) -> tuple[Net, Step]:
        nets = dict(self._candidates(number, net, target))
        scores = self._scores(number, nets)
        tried = tuple(Candidate(move, each.macs, each.resolution, scores[move]) for move, each in nets.items())
        best = max(tried, key=lambda candidate: candidate.score)
        accepted = nets[best.move]
        weights = self.journal.weights(number, str(best.move))
        if weights is not None:
            accepted.model.load_state_dict(weights)
        return accepted, Step(target, tried, best, accepted.changes)

    def _candidates(self, number: int, net: Net, target: int) -> Iterator[tuple[Move, Net]]:
        found = 0
        for move in moves_of(net, self.dims):
            seed = self.seed + 1000 * number
            grown = enlarged(net, move, target, preserve=self.preserve, pixels=self.pixels, seed=seed)
            if grown is not None and net.macs < grown.macs <= _OVERSHOOT * target:
                found += 1
                yield move, grown
        if not found:
            raise RunError(
                f"no candidate reaches {target:,} multiply-adds from {net.macs:,}: one channel, block or {self.pixels} "
                "pixels more are too much. Take a larger step"
            )

    def _scores(self, number: int, nets: Mapping[Move, Net]) -> dict[Move, float]:
        scores = {move: self.journal.score(number, str(move)) for move in nets}
        missing = {str(move): (move, nets[move]) for move, score in scores.items() if score is None}
        if self.on_step is not None:
            self.on_step(number + 1, len(nets), len(nets) - len(missing))
        jobs = {name: (net.model, net.resolution) for name, (_, net) in missing.items()}
        for name, score, weights, seconds in self.workers.evaluate(self.evaluate, jobs, self.seed):
            move, net = missing[name]
            if not math.isfinite(score):
                raise RunError(f"evaluate gave {score} for {name}, which is no score; what was finished is kept")
            self.journal.add(number, name, score, net.macs, net.resolution, seconds, weights)
            scores[move] = score
            if self.on_score is not None:
                self.on_score(Candidate(move, net.macs, net.resolution, score))
        return {move: score for move, score in scores.items() if score is not None}


# -- evaluation ------------------------------------------------------------------------------------

Outcome = tuple[str, float, "Mapping[str, Tensor] | None", float]
"""Name, score, trained weights where there are any, and seconds."""


class _Workers:
    """Evaluates nets here, or on an executor whose workers may die."""

    def __init__(self, executor: Executor | Callable[[], Executor] | None, stack: ExitStack) -> None:
        self.stack = stack
        self.make = executor if callable(executor) and not hasattr(executor, "submit") else None
        self.executor: Any = None if self.make is not None else executor
        self.here = executor is None

    def evaluate(self, function: Evaluate, jobs: Mapping[str, tuple[nn.Module, int]], seed: int) -> Iterator[Outcome]:
        """Yields outcomes as they come in."""
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
            assert self.make is not None
            self.executor = self.make()
            if hasattr(self.executor, "__exit__"):
                self.stack.push(self.executor)
        futures = {
            name: self.executor.submit(_judge_pickled, pickle.dumps((function, model)), resolution, seed)
            for name, (model, resolution) in jobs.items()
        }
        broken: BrokenExecutor | None = None
        try:
            for name, future in _as_they_come(futures):
                try:
                    score, saved, seconds = _guarded(name, future.result)
                except BrokenExecutor as error:  # others may have finished before
                    broken = error
                    continue
                yield name, score, None if saved is None else torch.load(io.BytesIO(saved), weights_only=True), seconds
        finally:
            for future in futures.values():  # where one failed, or the user stops, those in the queue need not run
                future.cancel()
        if broken is not None:
            raise broken


def _as_they_come(futures: Mapping[str, Future[Any]]) -> Iterator[tuple[str, Future[Any]]]:
    """Finished ones first, in the order in which they were handed in."""
    left = dict(futures)
    while left:
        name = next((name for name, future in left.items() if future.done()), None)
        if name is None:
            time.sleep(0.02)
            continue
        yield name, left.pop(name)


def _guarded(name: str, run: Callable[[], Any]) -> Any:
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
    torch.manual_seed(seed)
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
