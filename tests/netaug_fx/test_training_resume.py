"""Stopping and going on: a run that was killed or interrupted ends like one that never stopped, bit for bit."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from netaug_fx.errors import CheckpointError, RunError
from netaug_fx.training import interrupt, run
from netaug_fx.training.arm import build_net
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.data import load_task
from netaug_fx.training.interrupt import Interrupted
from tests.netaug_fx.launching import command_line, killed_at_step, launch
from tests.netaug_fx.training_runs import (
    EPOCHS,
    STEPS,
    assert_same_results,
    at_step,
    changed,
    checkpoint,
    environment,
    interrupt_at_step,
    rows_of,
)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own answer to Ctrl-C: programs that a shell starts in the background are born without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_killed_run_resumes_to_the_same_result(finished: Path, config: TrainConfig, tmp_path: Path) -> None:
    step = EPOCHS * STEPS + 2 * STEPS + 3  # in the middle of the second arm's last epoch
    folder, settings = tmp_path / "killed", tmp_path / "settings.yaml"
    settings.write_text(config.to_yaml())
    script = f"""
import os, signal
from pathlib import Path
from netaug_fx.training import engine, run
from netaug_fx.training.config import TrainConfig, load_config
gradients, calls = engine._gradients, []
def killing(*arguments):
    calls.append(1)
    if len(calls) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return gradients(*arguments)
engine._gradients = killing
run.start(load_config(TrainConfig, Path({str(settings)!r})), Path({str(folder)!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (folder / "report.json").exists()
    assert len(rows_of(folder)) == (step - 1) // STEPS
    (folder / "checkpoints" / ".netaug.half.tmp.pt").write_bytes(b"left behind by the kill")
    assert run.resume(folder) == folder
    assert_same_results(folder, finished)
    assert list(folder.rglob(".*")) == []


def test_an_interrupted_run_goes_on_from_the_very_step(
    finished: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"

    def stopped_after(arm: str, step: int) -> int:
        """Steps that the checkpoint holds after an interrupt in this step from where the run stands."""
        with monkeypatch.context() as patch:
            interrupt_at_step(patch, step)
            with pytest.raises(Interrupted, match=f"--resume {folder}"):
                run.resume(folder) if folder.exists() else run.start(config, folder)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return int(checkpoint(folder, arm)["step"])

    assert stopped_after("baseline", STEPS + 4) == STEPS + 4  # within an epoch
    assert stopped_after("baseline", 2 * STEPS - 4) == EPOCHS * STEPS  # the last of the arm: the next one has begun
    assert stopped_after("netaug", STEPS - 1) == STEPS  # at the end of an epoch
    run.resume(folder)
    assert_same_results(folder, finished)


def test_a_second_interrupt_stops_at_once(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0])

    def interrupt_twice(sums: Tensor) -> Tensor:
        monkeypatch.setattr(interrupt, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return sums

    at_step(monkeypatch, 3, interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        run.start(config, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "checkpoints" / "baseline.pt").exists()


def test_a_request_that_a_launcher_repeats_is_one_request(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sends on what the terminal, or a scheduler, has sent to all: the second one ended the run unsaved."""

    def interrupt_all(sums: Tensor) -> Tensor:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        return sums

    at_step(monkeypatch, 3, interrupt_all)
    with pytest.raises(Interrupted):
        run.start(config, tmp_path / "stopped")
    assert checkpoint(tmp_path / "stopped", "baseline")["step"] == 3


def test_a_run_with_changed_settings_is_not_resumed(finished: Path, tmp_path: Path, config: TrainConfig) -> None:
    folder = tmp_path / "edited"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "baseline.pt").write_bytes((finished / "checkpoints" / "baseline.pt").read_bytes())
    (folder / "config.yaml").write_text(changed(config, optim__epochs=9).to_yaml())
    with pytest.raises(CheckpointError, match=r"under other settings than those of the run's config\.yaml"):
        run.resume(folder)


def test_a_signal_to_all_processes_leaves_the_loaders_workers_to_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As schedulers, `timeout` and a terminal's Ctrl-C send it: workers that died of it took the run along."""
    settings, folder = changed(config, data__workers=2, arms=["baseline"]), tmp_path / "stopped"

    def end_all(sums: Tensor) -> Tensor:
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(worker.pid or 0, number)
        signal.raise_signal(signal.SIGTERM)
        return sums

    with monkeypatch.context() as patch:
        at_step(patch, 4, end_all)
        with pytest.raises(Interrupted):
            run.start(settings, folder)
    assert checkpoint(folder, "baseline")["step"] == 4
    run.resume(folder)
    assert (folder / "metrics.csv").read_text() == (run.start(settings, tmp_path / "whole") / "metrics.csv").read_text()


def test_a_run_whose_images_or_classes_are_others_is_not_resumed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, folder = tmp_path / "images", tmp_path / "run"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (8, 8), index).save(images / label / f"{index}.png")
    data = {"data__name": str(images), "data__batch_size": 4, "data__image_size": 8}
    rgb = {"model__kwargs": {"in_channels": 3}}
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 2)
        with pytest.raises(Interrupted):
            run.start(changed(config, arms=["baseline"], **data, **rgb), folder)
    (images / "cat").rename(images / "kitten")
    with pytest.raises(
        CheckpointError, match=r"other names of classes, or another order, than dog, kitten.*Bring them"
    ):
        run.resume(folder)
    (images / "kitten").rename(images / "cat")
    (images / "cat" / "0.png").unlink()
    with pytest.raises(CheckpointError, match=r"began with 16 training images, and there are 15 now.*Bring the images"):
        run.resume(folder)


def test_a_run_whose_settings_are_gone_is_not_resumed(tmp_path: Path) -> None:
    """An empty file meant the defaults, and the digits were trained into a folder of other images."""
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(RunError, match=r"config\.yaml lacks the settings that the run wrote there"):
        run.resume(tmp_path)


@pytest.fixture(scope="module")
def shared(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The settings of a run of two processes, saved at each step, and the folder of one that never stopped."""
    folder = tmp_path_factory.mktemp("shared")
    settings = {"optim__epochs": 2, "arms": ["netaug"], "data__batch_size": 64, "device": "cpu", "keep__minutes": 0}
    (folder / "settings.yaml").write_text(changed(config, optim__average=0.9, **settings).to_yaml())
    words = ["train", "--config", str(folder / "settings.yaml"), "--out", str(folder / "run")]
    # Which starts them by torchrun, whatever they compute on; with --cpu it would start a single one.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "-m", "netaug_fx.cli", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("netaug epoch 2/2") == 1
    return folder / "settings.yaml", folder / "run"


def test_two_processes_train_one_net(shared: tuple[Path, Path]) -> None:
    report = json.loads((shared[1] / "report.json").read_text())
    assert report["arms"]["netaug"]["steps"] == 2 * STEPS  # as many as one process has with twice the batch
    # Each validation image counts once, though their number is odd, and the net that is judged is the one delivered.
    config = load_config(TrainConfig, shared[0])
    task = load_task(config.data, config.seed)
    assert len(task.val) % 2 == 1
    tiny = build_net(config, task, "baseline").eval()
    tiny.load_state_dict(load_weights(shared[1] / "tiny.safetensors")[0])
    images = (task.val.images(range(len(task.val))).float() / 255 - task.mean[0]) / task.std[0]
    with torch.no_grad():
        right = (tiny(images).argmax(1) == task.val.labels).float().mean()
    assert report["arms"]["netaug"]["val_accuracy"] == pytest.approx(float(right), abs=1e-6)
    assert report["verification"]["passed"] is True


def test_two_killed_processes_resume_within_an_epoch(shared: tuple[Path, Path], tmp_path: Path) -> None:
    settings, whole = shared
    step, folder = STEPS + 5, tmp_path / "killed"
    words = ("train", "--config", str(settings), "--out", str(folder))
    with pytest.raises(AssertionError, match="SIGKILL"):
        launch(killed_at_step, 1, step, *words, folder=tmp_path / "first")
    with pytest.raises(CheckpointError, match=r"written by 2 processes, and 1 would go on.*as many processes"):
        run.resume(folder)
    held = checkpoint(folder, "netaug")
    assert (held["epoch"], held["batch"], held["step"]) == (1, step - 1 - STEPS, step - 1)
    launch(command_line, "train", "--resume", str(folder), folder=tmp_path / "second")
    for name in ("metrics.csv", "tiny.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
