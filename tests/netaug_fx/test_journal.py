"""The journal of a search: what a kill leaves, other searches, and trained weights beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netaug_fx.errors import CheckpointError, InputError, RunError
from netaug_fx.journal import Journal
from tests.netaug_fx.growing import like_depth, search, small


def filled(file: Path, rows: int = 3) -> Journal:
    journal = Journal(file, "search")
    for number in range(rows):
        journal.add(0, f"width of {number}", number / 10, 1000, 8, 0.5, None)
    return journal


def test_a_line_that_lost_its_end_alone_is_not_joined_with_the_next(tmp_path: Path) -> None:
    """The row and the one that was added behind it were both lost."""
    file = tmp_path / "journal.jsonl"
    filled(file)
    file.write_text(file.read_text().removesuffix("\n"))
    Journal(file, "search").add(0, "resolution", 0.9, 1000, 9, 0.5, None)
    again = Journal(file, "search")
    assert again.score(0, "width of 2") == 0.2
    assert again.score(0, "resolution") == 0.9


@pytest.mark.parametrize("broken", ['{"step": 0, "cand', "17", '{"step": 0}', "\x00\x00"])
def test_a_broken_line_takes_no_other_with_it(tmp_path: Path, broken: str) -> None:
    """All rows behind it were dropped."""
    file = tmp_path / "journal.jsonl"
    filled(file)
    head, one, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, one, broken, *rest]) + "\n")
    again = Journal(file, "search")
    assert [again.score(0, f"width of {number}") for number in range(3)] == [0.0, 0.1, 0.2]
    assert file.read_text().splitlines() == [head, one, *rest]


def test_a_candidate_that_came_to_no_score_is_known_as_such(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    Journal(file, "search").add(1, "resolution", -float("inf"), 1000, 9, 0.5, None)
    assert json.loads(file.read_text().splitlines()[1])["score"] is None
    assert Journal(file, "search").score(1, "resolution") == -float("inf")
    assert Journal(file, "search").score(0, "resolution") is None


def test_a_journal_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; give a file, such as .*journal\.jsonl"):
        search(journal=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be kept there.*give another file"):
        search(journal=tmp_path / "file" / "journal.jsonl")


def test_weights_that_are_gone_or_broken_are_named(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, "search")
    journal.add(0, "width of 0", 0.5, 1000, 8, 0.5, {"weight": torch.ones(2)})
    (weights,) = (tmp_path / "journal-weights").iterdir()
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(
        CheckpointError, match=r"the weights of width of 0 in step 1, cannot be read.*delete the candid"
    ):
        Journal(file, "search").weights(0, "width of 0")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"FileNotFoundError.*evaluated again"):
        Journal(file, "search").weights(0, "width of 0")


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda model: small(8).state_dict(), r"'0\.weight' is of shape \[8, 1, 3, 3\], expected"),
        (lambda model: {"weight": torch.ones(2)}, "what it returned (has|lacks)"),
        (lambda model: [torch.ones(2)], "must return the state_dict of the net that it was given.*not list"),
    ],
    ids=["shapes", "names", "no mapping"],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_kept(tmp_path: Path, returned: Any, words: str) -> None:
    file = tmp_path / "journal.jsonl"
    with pytest.raises(RunError, match=words):
        search(lambda model, resolution: (0.5, returned(model)), journal=file, dims=["width"])
    assert len(file.read_text().splitlines()) == 1
    assert not (tmp_path / "journal-weights").exists()


def with_other_weights(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1
    return model


@pytest.mark.parametrize(
    "other", [with_other_weights(small()), small(activation=nn.SiLU)], ids=["other weights", "other layers"]
)
def test_a_journal_of_another_model_is_refused(tmp_path: Path, other: nn.Module) -> None:
    """Its scores were taken over where shapes and multiply-adds were the same."""
    file = tmp_path / "journal.jsonl"
    found = search(journal=file)
    with pytest.raises(CheckpointError, match="another model or other weights in it"):
        search(journal=file, model=other)
    assert search(lambda model, resolution: pytest.fail("evaluated again"), journal=file).steps == found.steps


def test_the_same_dims_in_another_form_are_the_same_search(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    search(journal=file, dims=["width", "depth"], step=1)
    again = search(like_depth, journal=file, dims=("depth", "width"), step=1.0)
    assert len(file.read_text().splitlines()) == 1 + sum(len(step.candidates) for step in again.steps)
