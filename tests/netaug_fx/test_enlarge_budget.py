"""The budget of a search: what it ends with, who takes part in a step, and what is left out and why."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from netaug_fx.candidates import ABOVE, BELOW, DEPTH, RESOLUTION, WIDTH, LeftOut, Move, enlarged, moves_of, net_of
from netaug_fx.enlargement import enlarge
from netaug_fx.errors import InputError, RunError
from netaug_fx.models import ResNetCifar, digits_net
from tests.netaug_fx.growing import like_depth, macs_of, search, small


@pytest.mark.parametrize(("times", "step"), [(1.1, 0.25), (1.4, 1.0)])
def test_a_budget_within_half_a_step_is_gone_to(times: float, step: float) -> None:
    """It was rounded to no steps at all."""
    budget = times * macs_of(small())
    found = search(times=times, step=step)
    assert len(found.steps) == 1
    assert (1 - BELOW) * budget <= found.macs <= budget


def test_the_budget_is_never_exceeded_and_nearly_reached() -> None:
    found = search(times=2.6)
    budget = int(2.6 * macs_of(small()))
    assert len(found.steps) >= 2
    assert (1 - BELOW) * budget <= found.macs <= budget
    for step in found.steps:
        assert all(1 - BELOW <= candidate.macs / step.target <= 1 + ABOVE for candidate in step.candidates)
        assert all(candidate.macs <= budget for candidate in step.candidates)


def test_what_has_its_budget_is_handed_back_as_a_copy() -> None:
    model = small()
    found = search(model=model, times=1.0)
    assert found.steps == ()
    assert found.model is not model
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), model.parameters(), strict=True))


def test_candidates_that_stay_below_their_target_are_left_out() -> None:
    """One at 70 % of the multiply-adds of the others took part."""
    with pytest.raises(RunError, match=r"resolution: comes to [\d,]+ multiply-adds, 71% of the target"):
        search(dims=["resolution"], pin=["*"], times=2.2, step=2.0)


def test_what_is_left_out_is_said_with_its_reason() -> None:
    (step,) = search(dims=["width", "depth"], times=1.3).steps
    assert {candidate.move.dim for candidate in step.candidates} == {WIDTH}
    (out,) = step.left_out
    assert out.move == Move(DEPTH, "0")
    assert re.fullmatch(r"one more block: [\d,]+ multiply-adds, 11\d% of the target", out.why)


@pytest.mark.parametrize("name", ["resnet", "digits"])
@pytest.mark.parametrize("dim", [WIDTH, DEPTH, RESOLUTION])
def test_candidates_of_known_nets_come_near_their_target(name: str, dim: str) -> None:
    makes: dict[str, Any] = {
        "resnet": (lambda: ResNetCifar(8, in_channels=1), 1, 16),
        "digits": (digits_net, 1, 12),
    }
    make, planes, side = makes[name]
    stages = {"resnet": "conv1", "digits": "stem.conv"}
    first = net_of(make().eval(), ((torch.zeros(2, planes, side, side),), {}))
    move = Move(dim) if dim == RESOLUTION else next(m for m in _moves(first, dim, stages[name]))
    grown = enlarged(first, move, round(1.6 * first.macs), preserve=False, pixels=1, seed=0)
    assert not isinstance(grown, LeftOut), str(grown)
    assert 1 - BELOW <= grown.macs / (1.6 * first.macs) <= 1 + ABOVE


def _moves(first: Any, dim: str, stage: str) -> list[Move]:
    found = [move for move in moves_of(first, [dim]) if move.dim == dim]
    return [move for move in found if move.stage == stage] or found


def test_what_stands_in_the_way_of_every_candidate_is_said() -> None:
    with pytest.raises(RunError, match=r"depth of 0: a block behind '3'.*no residual block.*preserve=False"):
        search(model=small(shortcut=False), dims=["depth"], preserve=True, times=2.0)
    with pytest.raises(RunError, match=r"resolution: images of 16 pixels: [\d,]+ multiply-adds.*Take a larger step"):
        search(dims=["resolution"], pixels=8, times=1.2)


def test_depth_alone_makes_up_what_is_left_by_width() -> None:
    found = search(dims=["depth"], times=2.6, step=2.0)
    kinds = [next(iter(change)) for change in found.changes]
    assert set(kinds) == {"block", "widths"}
    assert found.macs == pytest.approx(2.6 * macs_of(small()), rel=BELOW)


def test_what_is_pinned_keeps_its_width_wherever_it_moves_to() -> None:
    found = search(times=2.6, pin=["4"])
    assert {"block"} < {next(iter(change)) for change in found.changes} == {"block", "widths"}
    pinned: Any = found.model[-4]  # type: ignore[index]
    assert len(found.model) > 8, "what is put before it moves it"  # type: ignore[arg-type]
    assert pinned.weight.shape == (8, 16, 1, 1)
    with pytest.raises(InputError, match="pin='nine' matches no module"):
        search(pin=["nine"])


class Wide:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, model: nn.Module, resolution: int) -> float:
        self.seen.append(resolution)
        return like_depth(model, resolution)


def test_images_that_are_not_square_have_no_side_to_grow() -> None:
    """They became square."""
    wide, macs = torch.randn(2, 1, 8, 12), 2 * macs_of(small())
    with pytest.raises(InputError, match=r"images of 8 x 12 are not square.*leave 'resolution' out of dims"):
        enlarge(small(), macs=macs, evaluate=like_depth, example_inputs=wide)
    evaluate = Wide()
    found = enlarge(small(), macs=macs, evaluate=evaluate, example_inputs=wide, dims=["width"], step=1.0)
    assert set(evaluate.seen) == {0} == {found.resolution}
    assert math.isclose(found.macs, macs, rel_tol=BELOW)
