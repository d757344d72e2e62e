"""Generations that were stopped, at a step or between two files, and go on like those that never were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from netaug_fx.errors import CheckpointError, RunError
from netaug_fx.training import evolve_run, run
from netaug_fx.training.config import EvolveConfig
from netaug_fx.training.interrupt import Interrupted
from tests.netaug_fx.launching import command_line, killed_at_step, launch
from tests.netaug_fx.training_runs import (
    EVOLVED,
    GENERATION_EPOCHS,
    GENERATION_STEPS,
    GENERATIONS,
    assert_same_results,
    changed,
    interrupt_at_step,
    without_seconds,
)

STEPS = GENERATION_STEPS * GENERATION_EPOCHS  # of a generation


# In the first generation, in the second one, at its end, and in the control.
@pytest.mark.parametrize("step", [5, STEPS + 3, STEPS * 2, STEPS * GENERATIONS + 4])
def test_an_interrupted_run_resumes_to_the_same_result(
    evolved: Path, evolve_config: EvolveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "run"

    with monkeypatch.context() as patched:
        interrupt_at_step(patched, step)
        with pytest.raises(Interrupted, match="netaug-fx evolve --resume"):
            evolve_run.start(evolve_config, folder)
    assert not (folder / "report.json").exists()
    evolve_run.resume(folder)
    assert_same_results(folder, evolved, EVOLVED)


def test_a_finished_run_writes_its_last_files_again(evolved: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(evolved, copied)
    for name in (*EVOLVED[2:], "report.json", "report.html", "metrics.csv"):
        (copied / name).unlink()
    evolve_run.resume(copied)
    assert_same_results(copied, evolved, EVOLVED)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("place", ["before the generation counts as finished", "before the one before it is deleted"])
def test_a_kill_between_the_files_of_a_generation_is_gone_on_from(
    evolved: Path, evolve_config: EvolveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder, second = tmp_path / "run", "generation-2"
    write = evolve_run.write_text

    def killing(path: Path, text: str) -> Path:
        if place.endswith("deleted"):
            write(path, text)
        if second in text:
            raise Killed
        return write(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(evolve_run, "write_text", killing)
        with pytest.raises(Killed):
            evolve_run.start(evolve_config, folder)
    kept = {file.name for file in (folder / "checkpoints").iterdir()}
    assert kept == {"generation-1.pt", "generation-2.pt", "finished.json"}
    evolve_run.resume(folder)
    assert_same_results(folder, evolved, EVOLVED)
    assert {file.name for file in folder.rglob("*")} == {file.name for file in evolved.rglob("*")}


def test_two_processes_evolve_one_net_and_go_on_after_a_kill(evolve_config: EvolveConfig, tmp_path: Path) -> None:
    """Rank 1 is killed in the second generation, of which checkpoints are written at each step."""
    settings = tmp_path / "settings.yaml"
    short = {"evolve__generations": 2, "optim__epochs": 1, "optim__warmup_epochs": 0.0, "data__batch_size": 16}
    settings.write_text(changed(evolve_config, **short, device="cpu", keep__minutes=0).to_yaml())
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    words = ("evolve", "--config", str(settings), "--out")
    launch(command_line, *words, str(whole), folder=tmp_path / "first")
    report = without_seconds(whole)
    assert report["verification"]["passed"]
    assert [row["steps"] for row in report["generations"]] == [GENERATION_STEPS] * 2
    with pytest.raises(AssertionError, match="SIGKILL"):
        launch(killed_at_step, 1, GENERATION_STEPS + 5, *words, str(folder), folder=tmp_path / "second")
    assert (folder / "checkpoints" / "generation-2.pt").exists()
    launch(command_line, "evolve", "--resume", str(folder), folder=tmp_path / "third")
    for name in ("metrics.csv", "slim.safetensors", "dense.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert {file.name for file in folder.rglob("*")} == {file.name for file in whole.rglob("*")}


def test_a_run_of_another_verb_or_a_broken_one_is_not_resumed(evolved: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        evolve_run.resume(tmp_path)
    with pytest.raises(RunError, match=f"of `netaug-fx train`. Continue it with netaug-fx train --resume {finished}"):
        evolve_run.resume(finished)
    with pytest.raises(RunError, match=f"of `netaug-fx evolve`. Continue it with netaug-fx evolve --resume {evolved}"):
        run.resume(evolved)
    copied = tmp_path / "copy"
    shutil.copytree(evolved, copied)
    (copied / "checkpoints" / "finished.json").write_text("[{")
    with pytest.raises(CheckpointError, match=r"finished\.json cannot be read"):
        evolve_run.resume(copied)
