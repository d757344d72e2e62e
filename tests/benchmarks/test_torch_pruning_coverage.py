import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning")

from benchmarks import torch_pruning_coverage as coverage
from benchmarks.processes import Processes, Silent
from benchmarks.rows import read
from benchmarks.torch_pruning_adapter import prune, set_kept, zero_removed
from benchmarks.torch_pruning_check import OURS, TP, Subject, Verdict, augment_verdict, measure, prune_verdict
from netaug_fx.passes.copying import copy_model
from tests.wirings import WIRINGS


def verdicts(name: str) -> tuple[Verdict, Verdict]:
    wiring = WIRINGS[name]
    model, inputs = wiring.build(), wiring.inputs(2)
    return prune_verdict(model, inputs, wiring.mixes), augment_verdict(model, inputs)


@pytest.mark.parametrize("name", ["shuffle_module", "roll_channels", "flatten_channels_last"])
def test_what_runs_but_reads_channels_with_the_wrong_weights_is_caught(name: str) -> None:
    theirs, ours = verdicts(name)
    assert theirs.works
    assert theirs.exact is False
    assert "differ" in theirs.reason
    assert ours == Verdict(True, True, None)


@pytest.mark.parametrize(
    "name", ["residual_identity", "concat", "squeeze_excite_convs", "batch_norm_affine_false", "flatten_to_linear"]
)
def test_what_is_pruned_rightly_is_exact(name: str) -> None:
    theirs, ours = verdicts(name)
    assert theirs == Verdict(True, True, None)
    assert ours == Verdict(True, True, None)


@pytest.mark.parametrize("name", ["layer_norm_mlp", "transformer_encoder_layer", "group_norm"])
def test_norms_and_attention_of_torch_do_not_stand_in_the_way_of_a_verdict(name: str) -> None:
    theirs, ours = verdicts(name)
    assert theirs.exact is True
    assert ours.exact is True


def test_a_statistic_across_channels_is_not_held_against_torch_pruning() -> None:
    theirs, ours = verdicts("mean_over_channels")
    assert (theirs.works, theirs.exact) == (True, None)
    assert "statistics span channels" in theirs.reason
    assert (ours.works, ours.exact) == (True, True), "here it is known which channels are the original's"


def test_a_head_width_that_was_set_by_hand_and_scales_is_not_held_against_torch_pruning() -> None:
    theirs, ours = verdicts("attention_separate_projections")
    assert (theirs.works, theirs.exact) == (True, None)
    assert "by hand" in theirs.reason
    assert ours.exact is True


def test_a_crash_is_told_in_the_error_s_own_words() -> None:
    theirs, ours = verdicts("literal_view")
    assert not theirs.works
    assert "RuntimeError" in theirs.reason
    assert "shape" in theirs.reason
    assert ours.exact is True


def test_what_netaug_fx_refuses_is_told_with_its_reason() -> None:
    wiring = WIRINGS["nothing_to_grow"]
    ours = augment_verdict(wiring.build(), wiring.inputs(2))
    assert not ours.works
    assert "nothing in this model can be widened" in ours.reason


def test_outputs_that_ignore_the_inputs_prove_nothing() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * 0)  # type: ignore[no-any-return]

    theirs = prune_verdict(Deaf(), ((torch.randn(2, 3),), {}))
    assert (theirs.works, theirs.exact) == (True, None)
    assert "do not depend on the inputs" in theirs.reason


def test_pruning_leaves_the_original_s_values_and_zeroing_the_rest() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).double().eval()
    original, zeroed = copy_model(model), copy_model(model)
    pruned = prune(model, ((torch.randn(2, 3, 6, 6).double(),), {}), tell_heads=False)
    set_kept(model, original, pruned.kept)
    zero_removed(zeroed, pruned.kept)
    assert pruned.modules == {id(model[index]) for index in (0, 1, 3)}
    assert model[0].weight.shape == (4, 3, 3, 3)
    assert model[3].weight.shape == (4, 4, 1, 1)
    left = [int(index) for index in zeroed[0].weight.flatten(1).any(1).nonzero().flatten()]
    assert len(left) == 4
    assert torch.equal(model[0].weight, original[0].weight[left])
    assert torch.equal(model[1].running_var, original[1].running_var[left])
    assert torch.equal(model[3].weight, original[3].weight[:, left])
    assert torch.equal(zeroed[3].weight[:, left], original[3].weight[:, left])
    assert int(zeroed[3].weight.ne(0).sum()) == 16


def test_share_counts_what_is_in_a_group_alone() -> None:
    wiring = WIRINGS["nothing_to_grow"]
    subject = Subject(wiring.build, lambda model: wiring.inputs(2), wiring.mixes)
    columns = measure(subject, TP) | measure(subject, OURS)
    assert columns["tp_macs_share"] == 0
    assert columns["ours_macs_share"] == 0
    assert columns["macs_error"] == ""


def test_a_stopped_run_goes_on_and_other_versions_are_measured_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--nets", "wirings", "--names", "shuffle_*l*", "--out", str(out)]
    coverage.main(arguments)
    rows = list(read(out).values())
    assert [row["name"] for row in rows] == ["shuffle_literal", "shuffle_module"]
    assert [row["tp_exact"] for row in rows] == [None, False]
    assert all(row["ours_exact"] and row["ours_macs_share"] == 1 for row in rows)
    printed = capsys.readouterr().out
    assert "Torch-Pruning, silently wrong: shuffle_module" in printed
    assert "netaug_fx, silently wrong: none" in printed

    measured: list[str] = []

    def measure_all(nets: str, left: list[str], jobs: int, timeout: float, take: Any) -> None:
        measured.extend(left)
        for name in left:
            take({**rows[0], "name": name})

    monkeypatch.setattr(coverage, "measure_all", measure_all)
    kept, older = (json.dumps(row) + "\n" for row in (rows[1], {**rows[0], "versions": {"torch": "1.0"}}))
    out.write_text(kept + older + '{"name": "cut o', encoding="utf-8")
    coverage.main(arguments)
    assert measured == ["shuffle_literal"]
    assert kept in out.read_text(encoding="utf-8")
    assert list(read(out)) == ["shuffle_literal", "shuffle_module"]
    coverage.main([*arguments, "--fresh"])
    assert measured[1:] == ["shuffle_literal", "shuffle_module"]
    out.write_text(kept + older, encoding="utf-8")
    coverage.main([*arguments, "--keep-older"])
    assert measured[3:] == []
    coverage.main([*arguments, "--keep-older", "--retry"])
    assert measured[3:] == ["shuffle_literal", "shuffle_module"], "on neither was Torch-Pruning exact"


def test_a_glob_without_a_match_is_named_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        coverage.parse_arguments(["--nets", "wirings", "--names", "no_such_*"])
    message = capsys.readouterr().err
    assert "--names" in message
    assert "'no_such_*'" in message
    assert next(iter(WIRINGS)) in message


class Asked(Processes):
    """Stands in for a process: it answers, or ends."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def ask(self, work: Any, *arguments: Any, **_: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Silent("took longer than 3 seconds"), "took longer than 3 seconds"),
        ({"error": "the net itself: Oops"}, "the net itself: Oops"),
    ],
)
def test_a_process_that_gives_no_verdict_is_told_for_its_tool_alone(answer: Any, reason: str) -> None:
    row = coverage.verdict(Asked(answer), "wirings", "concat", OURS, 3)
    assert row == {"ours_augmented": False, "ours_exact": None, "ours_macs_share": None, "ours_reason": reason}


def test_a_verdict_is_the_row() -> None:
    assert coverage.verdict(Asked({"tp_runs": True}), "wirings", "concat", TP, 3) == {"tp_runs": True}


def test_the_stored_results_hold_every_wiring_once() -> None:
    rows = [json.loads(text) for text in (coverage.RESULTS / "torch_pruning_wirings.jsonl").read_text().splitlines()]
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["name"] for row in rows} <= set(WIRINGS)
    assert not [row["name"] for row in rows if row["ours_exact"] is False]
