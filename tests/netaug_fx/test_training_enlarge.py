"""Whole runs of enlarging: what is written, what is chosen by what, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import netaug_fx
from netaug_fx.candidates import ABOVE, BELOW
from netaug_fx.cli import main
from netaug_fx.errors import CheckpointError, DataError, InputError, PlanError, RunError
from netaug_fx.training import enlarge_run
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import EnlargeConfig, load_config
from netaug_fx.training.data import DataConfig, load_task
from netaug_fx.training.enlarge_report import POOLED, program_of, size_name
from netaug_fx.training.interrupt import Interrupted
from netaug_fx.training.model_loading import load_model
from netaug_fx.training.trial import Trial, threads_of, trial_task
from tests.netaug_fx.training_runs import interrupt_at_step, rows_of

NET = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 1)
    def forward(self, x):
        return x + self.two(self.norm(self.one(x)).relu())

def make(num_classes=10, in_channels=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
SHORT = {
    "data.batch_size": 32,
    "data.val_fraction": 0.7,
    "optim.epochs": 2,
    "enlarge.epochs": 2,
    "enlarge.times": 4.0,
    "enlarge.step": 1.0,
    "enlarge.pixels": 2,
}
FILES = ["metrics.csv", "config.yaml", "enlarged.safetensors", "enlarged.py", "enlarged.onnx"]
ARMS = ["enlarged", "width", "compound", "original"]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    net = tmp_path_factory.mktemp("net") / "net.py"
    net.write_text(NET)
    return {"model.name": f"{net}:make", **SHORT}


def settings_of(overrides: dict[str, Any], **more: Any) -> EnlargeConfig:
    return load_config(EnlargeConfig, None, overrides | {k.replace("__", "."): v for k, v in more.items()})


@pytest.fixture(scope="module")
def whole(overrides: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return enlarge_run.start(settings_of(overrides), tmp_path_factory.mktemp("enlarge") / "whole")


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    return report


def assert_same_results(folder: Path, other: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert report_of(folder) == report_of(other)


def test_a_run_writes_all_its_files_and_nothing_else(whole: Path) -> None:
    kept = ["checkpoints/search.json", *(f"checkpoints/{arm}.pt" for arm in ARMS)]
    present = {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()}
    assert present == {*FILES, "journal.jsonl", "report.json", "report.html", *kept}
    rows = rows_of(whole)
    assert [(row["arm"], int(row["epoch"])) for row in rows] == [(arm, epoch) for arm in ARMS for epoch in (1, 2)]


def test_the_report_tells_the_path_and_what_stands_beside_it(whole: Path) -> None:
    report = report_of(whole)
    path = report["path"]
    assert path[-1]["macs"] == report["macs"] == report["nets"]["enlarged"]["macs"]
    assert 1 - BELOW <= path[-1]["macs"] / (4 * path[0]["macs"]) <= 1
    for row in path:
        assert sum(row["by_size"].values()) == row["macs"]
        assert row["stages"][0]["blocks"] >= 1
    for row in path[1:]:
        assert row["score"] == row["candidates"][0]["score"] == max(each["score"] for each in row["candidates"])
        assert {each["move"].split()[0] for each in row["candidates"] + row["left_out"]} == {
            "width",
            "depth",
            "resolution",
        }
        assert all(1 - BELOW <= each["macs"] / row["target"] <= 1 + ABOVE for each in row["candidates"])
        assert len({each["score"] for each in row["candidates"]}) > 1
    assert list(report["nets"]) == ARMS
    for name in ("width", "compound"):
        assert report["nets"][name]["macs"] == pytest.approx(report["macs"], rel=0.15)  # of so few channels
    assert report["verification"]["passed"]
    page = (whole / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "compound scaling" in page
    assert path[1]["move"] in page


def test_the_grown_net_is_made_loaded_verified_and_trained_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(whole)
    net = load_model(f"{whole / 'enlarged.py'}:enlarged").eval()
    tensors, facts = load_weights(whole / "enlarged.safetensors")
    net.load_state_dict(tensors)
    task = load_task(DataConfig(val_fraction=0.7, image_size=facts["image_size"]), 0)
    with torch.no_grad():
        right = (net(task.example(len(task.val))).argmax(1) == task.val.labels).double().mean().item()
    assert right == pytest.approx(report["nets"]["enlarged"]["accuracy"], abs=1e-6)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(whole / "enlarged.safetensors")])
    assert stopped.value.code in (0, None), capsys.readouterr().err
    supernet = netaug_fx.augment(net, 2, example_inputs=task.example())
    with supernet.augmented():
        assert supernet(task.example()).shape == (2, 10)


# 8 candidates take 26 steps each, and then four nets 32 each: in the second candidate, and in the second net.
@pytest.mark.parametrize("step", [30, 250])
def test_an_interrupted_run_resumes_to_the_same_result(
    whole: Path, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "run"

    with monkeypatch.context() as patched:
        interrupt_at_step(patched, step)
        with pytest.raises(Interrupted, match="netaug-fx enlarge --resume"):
            enlarge_run.start(settings_of(overrides), folder)
    assert not (folder / "report.json").exists()
    done = (folder / "journal.jsonl").read_text().splitlines()
    assert len(done) == (2 if step == 30 else 9)
    enlarge_run.resume(folder)
    assert (folder / "journal.jsonl").read_text().splitlines()[: len(done)] == done
    assert_same_results(whole, folder)


def test_a_broken_search_file_is_named(whole: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(whole, copied)
    (copied / "checkpoints" / "search.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"search\.json cannot be read.*by its journal"):
        enlarge_run.resume(copied)


def test_processes_give_the_scores_of_one_process(overrides: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    folder = enlarge_run.start(settings_of(overrides, jobs=2, enlarge__compare=False), tmp_path / "run")
    assert report_of(folder)["path"] == report_of(whole)["path"]
    assert list(report_of(folder)["nets"]) == ["enlarged"]


def test_the_command_line_says_what_is_wrong_and_resumes_by_itself(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> Any:
        with pytest.raises(SystemExit) as stopped:
            main(["enlarge", *map(str, words)])
        return stopped.value.code or 0

    assert call("--times", "0.5", "--out", tmp_path / "run") == 2
    assert "(--times)" in capsys.readouterr().err
    assert call("--dims", "width,height", "--out", tmp_path / "run") == 2
    assert "(--dims)" in capsys.readouterr().err
    assert call("--resume", whole, "--jobs", 2) == 2
    assert "--resume continues a run with its own settings" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# -- how candidates are judged ---------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(0)
    return netaug_fx.models.digits_net()


def test_a_trial_is_the_same_for_the_same_net_and_can_be_pickled() -> None:
    trial = Trial(settings_of(SHORT))
    score = trial(small(), 8)
    assert isinstance(score, float)
    assert pickle.loads(pickle.dumps(trial))(small(), 8) == score
    inheriting = Trial(settings_of(SHORT, enlarge__inherit=True))
    net = small()
    first: Any = inheriting(net, 8)
    assert first[0] == score
    assert first[1].keys() == net.state_dict().keys()
    assert not torch.equal(first[1]["classifier.weight"], small().state_dict()["classifier.weight"])


def test_candidates_are_not_judged_by_the_validation_images() -> None:
    data = DataConfig()
    task = load_task(data, 0)
    trial = trial_task(data, 0, 0.25, 8)
    assert len(trial.train) + len(trial.val) == len(task.train)
    assert len(trial.val) == pytest.approx(0.25 * len(task.train), rel=0.02)
    every = task.train.images(range(len(task.train)))
    parts = torch.cat([part.images(range(len(part))) for part in (trial.train, trial.val)])
    assert torch.equal(every.flatten(1).sum(1).sort().values, parts.flatten(1).sum(1).sort().values)
    assert torch.equal(trial.val.picture(3), trial.val.images([3])[0])
    assert trial.val.labels.bincount().min() > 0


def test_what_decides_scores_is_in_the_fingerprint_of_a_trial() -> None:
    base = Trial(settings_of(SHORT)).fingerprint
    assert Trial(settings_of(SHORT, jobs=3, threads=1)).fingerprint == base
    assert Trial(settings_of(SHORT, optim__lr=0.2)).fingerprint != base
    assert Trial(settings_of(SHORT, data__image_size=10)).fingerprint != base
    assert Trial(settings_of(SHORT, enlarge__epochs=3)).fingerprint != base
    assert Trial(settings_of(SHORT, enlarge__hold_out=0.3)).fingerprint != base
    assert Trial(settings_of(SHORT, seed=1)).fingerprint != base


@pytest.mark.parametrize(
    "more",
    [
        {"enlarge__journal": "elsewhere.jsonl"},
        {"enlarge__compare": False},
        {"enlarge__times": 5.0},
        {"optim__epochs": 9},
        {"model__name": "resnet20"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_does_not_decide_a_candidate_s_score_is_in_no_fingerprint(more: dict[str, Any]) -> None:
    """Valid journals were refused."""
    assert Trial(settings_of(SHORT, **more)).fingerprint == Trial(settings_of(SHORT)).fingerprint


def test_a_training_that_diverges_has_no_score_and_does_not_end_the_search() -> None:
    """It raised, and did so again each time that the run was resumed."""
    trial = Trial(settings_of(SHORT, optim__lr=1e20, enlarge__inherit=True, optim__clip_norm=None))
    assert math.isnan(trial(small(), 8))  # type: ignore[arg-type]


def test_threads_are_the_same_for_any_number_of_processes_where_it_is_said() -> None:
    for settings in (SHORT, SHORT | {"data.name": "glyphs", "threads": 2}):
        assert threads_of(settings_of(settings)) == threads_of(settings_of(settings, jobs=2)) is not None
    unset = SHORT | {"data.name": "glyphs"}
    assert threads_of(settings_of(unset)) is None
    assert threads_of(settings_of(unset, jobs=2)) == 1


def test_a_journal_is_found_from_any_folder(
    overrides: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative one was looked for in the folder that the run was resumed in."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(whole / "journal.jsonl", "shared.jsonl")
    settings = settings_of(overrides, enlarge__journal="shared.jsonl", enlarge__compare=False)
    folder = enlarge_run.start(settings, tmp_path / "run")
    kept = yaml.safe_load((folder / "config.yaml").read_text())["enlarge"]["journal"]
    assert kept == str(tmp_path / "shared.jsonl")
    assert Path("shared.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes(), "nothing was evaluated again"


def test_a_journal_of_other_trainings_is_refused(overrides: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    shutil.copy(whole / "journal.jsonl", journal)
    with pytest.raises(CheckpointError, match="journal of another search"):
        enlarge_run.start(settings_of(overrides, enlarge__journal=str(journal), optim__lr=0.2), tmp_path / "run")
    assert journal.read_bytes() == (whole / "journal.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("resolution", "positions", "name"),
    [(8, 64, "full size"), (9, 25, "1/2"), (224, 49, "1/32"), (224, 1, POOLED)],
)
def test_feature_maps_are_named_by_their_part_of_the_image(resolution: int, positions: int, name: str) -> None:
    assert size_name(positions, resolution) == name


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ({"enlarge.times": 1.0}, InputError, r"'enlarge\.times' \(--times\).*greater than 1"),
        ({"enlarge.macs": 1000}, InputError, "give one"),
        ({"enlarge.times": None, "enlarge.macs": 100}, InputError, r"macs=100 is below what Sequential has"),
        ({"enlarge.step": 0}, InputError, r"'enlarge\.step' \(--step\)"),
        ({"enlarge.dims": ["height"]}, InputError, r"'enlarge\.dims' \(--dims\)"),
        ({"enlarge.dims": ["width", "width"]}, InputError, "names one thing twice"),
        ({"optim.average": 0.99}, InputError, r"optim\.average is for netaug-fx train"),
        ({"jobs": 0}, InputError, r"'jobs' \(--jobs\)"),
        ({"data.batch_size": 500}, DataError, r"training images do not fill one batch"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    overrides: dict[str, Any], tmp_path: Path, override: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        enlarge_run.start(load_config(EnlargeConfig, None, overrides | override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_net_without_stages_or_a_run_of_another_kind_is_refused(
    overrides: dict[str, Any], tmp_path: Path, finished: Path
) -> None:
    (tmp_path / "flat.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    flat = settings_of(overrides, model__name=f"{tmp_path / 'flat.py'}:make", enlarge__dims=["width", "depth"])
    with pytest.raises(PlanError, match="nothing that could be enlarged"):
        enlarge_run.start(flat, tmp_path / "run")
    with pytest.raises(RunError, match="no run folder"):
        enlarge_run.resume(tmp_path)
    with pytest.raises(RunError, match="a run of `netaug-fx train`"):
        enlarge_run.resume(finished)


def test_the_program_finds_a_model_s_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(EnlargeConfig, None, {**SHORT, "model.name": "net.py:make"})
    text = program_of(config, load_task(config.data, 0), {"macs": 1, "resolution": 8, "changes": []})
    assert f"{tmp_path / 'net.py'}:make" in text
