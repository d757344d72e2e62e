"""Enlarging: the chain of steps, equal multiply-adds, and journals that spare work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.candidates import ABOVE, BELOW, rebuilt
from netaug_fx.enlargement import Enlarged, enlarge
from netaug_fx.errors import CheckpointError, InputError, PlanError, RunError
from netaug_fx.models import ResNetCifar
from netaug_fx.passes.fake_macs import fake_macs

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return ResNetCifar(8, in_channels=1).eval()


def like_depth(model: nn.Module, resolution: int) -> float:
    """A taste for layers, and a slight one for small images."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) - resolution / 1000


class Counted:
    def __init__(self, fails_at: int = 0) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, model: nn.Module, resolution: int) -> float:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ValueError("no more memory")
        return like_depth(model, resolution)


BASE = fake_macs(net(), ((X,), {})) // 2


def search(evaluate: Any = like_depth, times: float = 3.5, **options: Any) -> Enlarged:
    settings = {"step": 0.8, "pixels": 2, "example_inputs": X} | options
    return enlarge(net(), macs=int(times * BASE), evaluate=evaluate, **settings)


Begun = list[tuple[int, int, int]]


@pytest.fixture(scope="module")
def searched() -> tuple[Enlarged, Begun]:
    """One search, and what it said as each step began."""
    begun: Begun = []
    return search(on_step=lambda *numbers: begun.append(numbers)), begun


def path_of(found: Enlarged) -> list[str]:
    return [str(step.accepted.move) for step in found.steps]


def test_the_best_candidate_of_each_step_is_accepted_and_the_budget_is_met(searched: tuple[Enlarged, Begun]) -> None:
    found, _ = searched
    assert len(found.steps) >= 2
    for step in found.steps:
        assert step.accepted.score == max(candidate.score for candidate in step.candidates)
        assert step.accepted in step.candidates
        assert all(1 - BELOW <= candidate.macs / step.target <= 1 + ABOVE for candidate in step.candidates)
        assert len({candidate.move for candidate in step.candidates}) == len(step.candidates)
    assert all(move.startswith("depth of") for move in path_of(found))
    assert (1 - BELOW) * 3.5 * BASE < found.macs <= 3.5 * BASE
    assert found.macs == fake_macs(found.model, ((X,), {}), found.resolution) // 2
    assert isinstance(found.model, ResNetCifar)
    tried = {candidate.move.dim for step in found.steps for candidate in step.candidates}
    assert tried == {"width", "depth", "resolution"}


def test_the_same_seed_gives_the_same_search(searched: tuple[Enlarged, Begun]) -> None:
    (one, _), two = searched, search()
    assert one.steps == two.steps
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


def test_only_what_is_asked_for_is_enlarged() -> None:
    found = search(dims=["width"])
    assert {candidate.move.dim for step in found.steps for candidate in step.candidates} == {"width"}
    assert found.resolution == 8


def test_a_net_that_preserves_its_function_computes_what_the_first_one_did() -> None:
    found = search(preserve=True, dims=["width", "depth"])
    with torch.no_grad():
        torch.testing.assert_close(found.model.eval()(X), net()(X), rtol=1e-3, atol=1e-4)


def test_a_search_goes_on_from_its_journal_without_evaluating_anything_again(
    searched: tuple[Enlarged, Begun], tmp_path: Path
) -> None:
    expected, _ = searched
    calls = sum(len(step.candidates) for step in expected.steps)
    failing = Counted(fails_at=calls - 2)
    with pytest.raises(RunError, match=r"evaluate failed on .*ValueError: no more memory.*kept in the journal"):
        search(failing, journal=tmp_path / "journal.jsonl")
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"step": 1, "cand')  # as a kill leaves it
    rest = Counted()
    found = search(rest, journal=tmp_path / "journal.jsonl")
    assert failing.calls - 1 + rest.calls == calls
    assert found.steps == expected.steps
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True))
    done = Counted()
    assert search(done, journal=tmp_path / "journal.jsonl").steps == expected.steps
    assert done.calls == 0
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == calls


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    search(journal=tmp_path / "journal.jsonl", times=2.0)
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="journal of another search"):
        search(journal=tmp_path / "journal.jsonl", times=1.9)
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def trained(model: nn.Module, resolution: int) -> tuple[float, dict[str, torch.Tensor]]:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return like_depth(model, resolution), model.state_dict()


@pytest.mark.parametrize("kept", [True, False])
def test_trained_weights_are_inherited(tmp_path: Path, kept: bool) -> None:
    options = {"journal": tmp_path / "j.jsonl"} if kept else {}
    found = search(trained, preserve=True, dims=["depth"], **options)
    weight: Any = found.model.get_parameter("fc.bias")
    assert torch.allclose(weight, net().get_parameter("fc.bias") + len(found.steps))
    if kept:
        again = search(Counted(fails_at=1), preserve=True, dims=["depth"], **options)
        assert torch.equal(again.model.get_parameter("fc.bias"), weight)


def test_a_grown_net_is_made_anew_by_its_changes(searched: tuple[Enlarged, Begun]) -> None:
    found, begun = searched
    assert begun == [(number + 1, len(step.candidates), 0) for number, step in enumerate(found.steps)]
    changes = json.loads(json.dumps(found.changes))
    anew = rebuilt(net(), changes, example_inputs=X)
    anew.load_state_dict(found.model.state_dict())
    assert torch.equal(anew.eval()(X), found.model.eval()(X))
    with pytest.raises(InputError, match="no group 'conv9': these changes are of another model"):
        rebuilt(net(), [{"widths": {"conv9": 20}}], example_inputs=X)


def test_a_journal_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    search(Named("one"), journal=journal, times=2.0)
    with pytest.raises(CheckpointError, match="journal of another search"):
        search(Named("two"), journal=journal, times=2.0)


class Named:
    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def __call__(self, model: nn.Module, resolution: int) -> float:
        return like_depth(model, resolution)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"macs": 10}, r"macs=10 is below what ResNetCifar has"),
        ({"step": 0}, "step must be above 0"),
        ({"dims": ["height"]}, "dims must be some of"),
        ({"dims": "width"}, "dims must be some of"),
        ({"pixels": 0}, "pixels must be an integer"),
        ({"macs": 1.5e6}, "macs must be an integer"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_evaluated(options: dict[str, Any], words: str) -> None:
    evaluate = Counted()
    with pytest.raises(InputError, match=words):
        enlarge(net(), **{"macs": 2 * BASE, "evaluate": evaluate, "example_inputs": X, **options})
    assert evaluate.calls == 0


def test_a_net_without_stages_or_a_step_that_is_too_small_says_so() -> None:
    with pytest.raises(PlanError, match="nothing that could be enlarged"):
        enlarge(nn.Linear(3, 2), macs=100, evaluate=like_depth, example_inputs=torch.zeros(2, 3))
    with pytest.raises(RunError, match="Take a larger step"):
        search(dims=["resolution"], step=0.1, times=1.2)


def test_a_grown_net_is_augmented_extracted_verified_and_evolved() -> None:
    """All three systems in a row."""
    grown = search(times=2.0).model
    x = torch.randn(2, 1, 12, 12)
    supernet = netaug_fx.augment(grown, ratio=2, example_inputs=x)
    with supernet.augmented():
        supernet(x).sum().backward()
    tiny = netaug_fx.extract(supernet)
    netaug_fx.verify(tiny, grown, x).raise_if_failed()
    split = netaug_fx.evolve(tiny, keep=0.5, example_inputs=x)
    netaug_fx.reset_(split)
    netaug_fx.verify(netaug_fx.extract(split), split, x).raise_if_failed()
