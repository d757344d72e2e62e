"""Greedy Network Enlarging: a small net grown to a budget of multiply-adds, step by step, by what helps most.

At each step every candidate (a stage wider, a stage deeper, larger images) is brought to the same multiply-adds and
evaluated; the best is accepted. ([GNE]: Greedy Network Enlarging, arXiv 2108.00177.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netaug_fx.candidates import (
    BELOW,
    DIMS,
    RESOLUTION,
    Change,
    LeftOut,
    Move,
    Net,
    enlarged,
    moves_of,
    net_of,
)
from netaug_fx.errors import InputError, PlanError, RunError
from netaug_fx.example_inputs import checked_model, resolve_inputs
from netaug_fx.journal import Journal
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.fake_macs import image_sides
from netaug_fx.seeded import generators_kept
from netaug_fx.workers import Evaluate, Workers, check_executor


@dataclass(frozen=True)
class Candidate:
    """One that was evaluated.

    Attributes:
        move: What was enlarged.
        macs: Multiply-adds of one image.
        resolution: Side of the images.
        score: What ``evaluate`` gave; -inf for one that was not finite.
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
        accepted: The best of them; of equal ones the first.
        changes: What made its net out of the first one, this step included.
        left_out: What came to no candidate, and why.
    """

    target: int
    candidates: tuple[Candidate, ...]
    accepted: Candidate
    changes: tuple[Change, ...]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Enlarged:
    """What a search came to.

    Attributes:
        model: The grown net, with the weights that its last training left where ``evaluate`` returns them.
        resolution: Side of the square images that it takes; 0 where it takes none.
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
    pin: Sequence[str] = (),
    seed: int = 0,
    on_score: Callable[[Candidate], object] | None = None,
    on_step: Callable[[int, int, int], object] | None = None,
) -> Enlarged:
    """Grows a model to a budget of multiply-adds ([GNE], algorithm 1).

    Args:
        model: Any module; it is not changed.
        macs: Multiply-adds of one image that the net may have at the end. It has these or up to 10 % less.
        evaluate: Called with a net and the side of its images; returns a score, or a score and a state_dict, from which
            the net then goes on (inherited weights).
        step: By about how much multiply-adds grow in a step: 0.25 for a quarter. Steps are of one size, such that the
            last one ends at the budget.
        dims: What may be enlarged, of ``width``, ``depth`` and ``resolution``. Blocks and pixels come in whole numbers:
            what they leave to a step's target is made up by width, also where ``width`` is not among these.
        executor: Where candidates are evaluated: one of ``concurrent.futures``, or anything with a ``submit`` that
            returns futures; or a function that makes one, which is called again when its workers die. None evaluates in
            this process. Nets and ``evaluate`` are pickled for it. What evaluates in threads must not draw from the
            global generators, which threads share.
        journal: File that keeps the score of every candidate. A search that was killed goes on from it, and evaluates
            nothing again that is in it.
        example_inputs: As for ``augment``.
        preserve: New blocks are identities and new channels copies, so that a candidate starts as good as the net that
            it grew from. By default they are fresh.
        pixels: The side of the images grows by multiples of this.
        pin: Globs of module paths whose widths stay.
        seed: Of all that is drawn; ``evaluate`` finds torch's, NumPy's and Python's generators seeded by it, and the
            caller finds them as they were.
        on_score: Called with each candidate as its score comes in.
        on_step: Called as a step begins: with its number from 1 on, how many candidates it has, and how many of these
            are in the journal.

    Returns:
        The grown net and the chain of accepted steps.

    Raises:
        InputError: an argument cannot be used, or the budget is below what the model has.
        PlanError: nothing of the model can be enlarged.
        RunError: ``evaluate`` failed, or gave no finite score to any candidate of a step; workers kept dying; or no
            candidate came near the next target. What was finished is in the journal.
        CheckpointError: the journal is of another search, or weights beside it are gone.

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
    check_executor(executor, evaluate)
    net = starting_net(model, macs, dims, example_inputs, pin)
    named = getattr(evaluate, "fingerprint", "")
    decides = {"macs": macs, "step": float(step), "dims": sorted(dims), "preserve": preserve, "pixels": pixels}
    book = Journal(
        Path(journal) if journal is not None else None, _fingerprint(net, decides | {"seed": seed, "evaluate": named})
    )
    with ExitStack() as stack, generators_kept():  # threads may put them back in another order
        workers = Workers(executor, stack)
        return _Search(net, macs, evaluate, step, dims, workers, book, preserve, pixels, seed, on_score, on_step).run()


def starting_net(
    model: nn.Module, macs: int, dims: Sequence[str], example_inputs: Any = None, pin: Sequence[str] = ()
) -> Net:
    """What a search starts from.

    Raises:
        InputError: the budget is below what the model has, its images are not square and are to grow, or ``pin``
            matches no module.
        PlanError: nothing of it can be enlarged.
    """
    checked_model(model)
    inputs = resolve_inputs(model, example_inputs)
    net = net_of(model, inputs, pin)
    if macs < net.macs:
        raise InputError(f"macs={macs:,} is below what {type(model).__name__} has: {net.macs:,} for one image")
    height, width = image_sides(inputs) or (0, 0)
    if RESOLUTION in dims and height != width:
        raise InputError(
            f"images of {height} x {width} are not square, and have no side that could grow: leave 'resolution' out of "
            "dims"
        )
    if not moves_of(net, dims):
        raise PlanError(
            f"{type(model).__name__} has nothing that could be enlarged in {', '.join(dims)}: see "
            "netaug_fx.inspect(model) for its stages, its groups and why widths stay"
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


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _fingerprint(net: Net, decides: Mapping[str, Any]) -> str:
    """Of the net that a search starts from, its weights and layers included, and of all else that decides its way."""
    digest = hashlib.sha256()
    for name, value in net.model.state_dict().items():
        digest.update(f"{name} {getattr(value, 'dtype', type(value))} {list(getattr(value, 'shape', ()))}".encode())
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized:
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    classes = [f"{type(module).__module__}.{type(module).__qualname__}" for module in net.model.modules()]
    layers = _ADDRESS.sub("", repr(net.model))
    content = [layers, classes, net.resolution, net.macs, net.pin, {name: repr(each) for name, each in decides.items()}]
    digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass
class _Search:
    """A search under way."""

    net: Net
    macs: int
    evaluate: Evaluate
    step: float
    dims: Sequence[str]
    workers: Workers
    journal: Journal
    preserve: bool
    pixels: int
    seed: int
    on_score: Callable[[Candidate], object] | None
    on_step: Callable[[int, int, int], object] | None

    def run(self) -> Enlarged:
        steps: list[Step] = []
        net = self.net
        while net.macs < (self.macs if not steps else (1 - BELOW) * self.macs):
            left = max(1, round(math.log(self.macs / net.macs) / math.log(1 + self.step)))
            target = round(net.macs * (self.macs / net.macs) ** (1 / left))
            net, done = self._step(len(steps), net, target)
            steps.append(done)
        model = net.model if steps else copy_model(net.model)
        return Enlarged(model, net.resolution, net.macs, tuple(steps))

    def _step(self, number: int, net: Net, target: int) -> tuple[Net, Step]:
        nets, left_out = self._candidates(number, net, target)
        scores = self._scores(number, nets)
        tried = tuple(Candidate(move, each.macs, each.resolution, scores[move]) for move, each in nets.items())
        best = max(tried, key=lambda candidate: candidate.score)
        if best.score == -math.inf:
            raise RunError(
                f"no candidate of step {number + 1} got a finite score. Let evaluate train more gently (a smaller "
                "learning rate), and give another journal: what is in this one is not evaluated again"
            )
        accepted = nets[best.move]
        weights = self.journal.weights(number, str(best.move))
        if weights is not None:
            accepted.model.load_state_dict(weights)
        return accepted, Step(target, tried, best, accepted.changes, left_out)

    def _candidates(self, number: int, net: Net, target: int) -> tuple[dict[Move, Net], tuple[LeftOut, ...]]:
        nets: dict[Move, Net] = {}
        left_out: list[LeftOut] = []
        for move in moves_of(net, self.dims):
            seed = self.seed + 1000 * number
            grown = enlarged(net, move, target, preserve=self.preserve, pixels=self.pixels, seed=seed, limit=self.macs)
            if isinstance(grown, LeftOut):
                left_out.append(grown)
            else:
                nets[move] = grown
        if not nets:
            raise RunError(
                f"no candidate comes near {target:,} multiply-adds from {net.macs:,} "
                f"({'; '.join(map(str, left_out)) or 'nothing can be enlarged'}). Take a larger step"
                + (", or preserve=False, which is how='fresh'" if self.preserve else "")
            )
        return nets, tuple(left_out)

    def _scores(self, number: int, nets: Mapping[Move, Net]) -> dict[Move, float]:
        scores = {move: self.journal.score(number, str(move)) for move in nets}
        missing = {str(move): (move, nets[move]) for move, score in scores.items() if score is None}
        if self.on_step is not None:
            self.on_step(number + 1, len(nets), len(nets) - len(missing))
        jobs = {name: (net.model, net.resolution) for name, (_, net) in missing.items()}
        for name, score, weights, seconds in self.workers.evaluate(self.evaluate, jobs, self.seed):
            move, net = missing[name]
            if not math.isfinite(score):
                warnings.warn(f"evaluate gave {score} for {name}, which is out of the choice", stacklevel=2)
                score, weights = -math.inf, None
            if weights is not None:
                _require_fitting(name, weights, net.model)
            self.journal.add(number, name, score, net.macs, net.resolution, seconds, weights)
            scores[move] = score
            if self.on_score is not None:
                self.on_score(Candidate(move, net.macs, net.resolution, score))
        return {move: score for move, score in scores.items() if score is not None}


def _require_fitting(name: str, weights: Any, model: nn.Module) -> None:
    """Raises:
    RunError: they are not a state_dict of the candidate.
    """
    expected = model.state_dict()
    remedy = f"evaluate must return the state_dict of the net that it was given ({name})"
    if not isinstance(weights, Mapping):
        raise RunError(f"{remedy}, not {type(weights).__name__}")
    strange = next(iter({*weights} ^ {*expected}), None)
    if strange is not None:
        found = "has" if strange in weights else "lacks"
        raise RunError(f"{remedy}; what it returned {found} {strange!r}")
    for key, value in expected.items():
        shapes = [list(getattr(each, "shape", ())) for each in (value, weights[key])]
        if shapes[0] != shapes[1]:
            raise RunError(f"{remedy}; {key!r} is of shape {shapes[1]}, expected {shapes[0]}")
