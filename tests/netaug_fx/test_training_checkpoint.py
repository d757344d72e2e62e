"""Checkpoints and weight files: what goes in comes out, and nothing bad is loaded or left behind."""

import errno
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netaug_fx.errors import CheckpointError, RunError
from netaug_fx.training import checkpoint
from netaug_fx.training.checkpoint import (
    ArmState,
    load_state,
    load_weights,
    put_weights,
    rng_state,
    save_state,
    save_weights,
    set_rng_state,
)


def make_state() -> ArmState:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return ArmState(
        arm="baseline",
        fingerprint="abc",
        weights=net.state_dict(),
        optimizer=optimizer.state_dict(),
        average=None,
        scaler=None,
        epoch=1,
        batch=2,
        step=3,
        sums=torch.ones(1, 4, dtype=torch.float64),
        history=[{"epoch": 1, "val_accuracy": 0.5}],
        best=0.5,
        rng=[rng_state()],
        data_order={"seed": 0, "epoch": 1, "batch": 2},
        seconds=1.5,
    )


def test_a_state_reads_back_without_running_code(tmp_path: Path) -> None:
    state, file = make_state(), tmp_path / "checkpoint.pt"
    save_state(state, file)
    assert isinstance(torch.load(file, weights_only=True), dict)
    again = load_state(file, "baseline", "abc")
    assert torch.equal(again.weights["weight"], state.weights["weight"])
    assert (again.epoch, again.batch, again.step, again.history) == (1, 2, 3, state.history)
    momentum = [entry["momentum_buffer"] for entry in again.optimizer["state"].values()]
    assert len(momentum) == 2


def test_all_generators_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(1))]

    random.gauss(0, 1)  # leaves one spare value in Python's generator
    np.random.normal()
    state = rng_state()
    first = draw()
    draw()
    set_rng_state(state)
    assert draw() == first


@pytest.mark.parametrize(
    ("arm", "fingerprint", "words"),
    [("netaug", "abc", "'baseline'.*'netaug'"), ("baseline", "xyz", "other settings .* or by another net")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, arm: str, fingerprint: str, words: str) -> None:
    save_state(make_state(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=words):
        load_state(tmp_path / "a.pt", arm, fingerprint)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    save_state(replace(make_state(), format=99), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="format 99"):
        load_state(tmp_path / "a.pt", "baseline", "abc")


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("must_not_exist"),)  # type: ignore[return-value]


def pickled_code(file: Path) -> None:
    torch.save({"weights": Malicious()}, file)


def plain_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Malicious(), protocol=2))


@pytest.mark.parametrize("write", [pickled_code, plain_pickle])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.pt")
    for load in (lambda file: load_state(file, "baseline", "abc"), load_weights):
        with pytest.raises(CheckpointError, match=r"bad\.pt holds more than plain tensors"):
            load(tmp_path / "bad.pt")
    assert not (tmp_path / "must_not_exist").exists()


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "a.pt"
    save_state(make_state(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"a\.pt is truncated"):
        load_state(file, "baseline", "abc")


@pytest.mark.parametrize("content", [[1, 2], {"weights": 3}, {"a": "text"}])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        load_state(tmp_path / "a.pt", "baseline", "abc")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        load_weights(tmp_path / "a.pt")


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_text("import torch\n")
    with pytest.raises(CheckpointError, match=r"net\.pt is truncated or no checkpoint") as caught:
        load_weights(tmp_path / "net.pt")
    assert "weights_only" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name}: there is no such file"):
            load_weights(tmp_path / name)


def test_weights_and_metadata_read_back(tmp_path: Path) -> None:
    net, file = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), tmp_path / "tiny.safetensors"
    save_weights(net, file, {"model": "a", "num_classes": 3, "mean": [0.5]})
    tensors, facts = load_weights(file)
    assert facts == {"model": "a", "num_classes": 3, "mean": [0.5]}
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    put_weights(other, tensors, file, "a")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())


def test_weights_load_from_a_state_dict_and_from_a_checkpoint(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    assert torch.equal(load_weights(tmp_path / "plain.pt")[0]["weight"], net.weight)
    state = make_state()
    save_state(state, tmp_path / "run.pt")
    assert torch.equal(load_weights(tmp_path / "run.pt")[0]["weight"], state.weights["weight"])


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(net, tmp_path / "tied.safetensors", {})
    tensors, _ = load_weights(tmp_path / "tied.safetensors")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])


def test_weights_of_another_model_are_refused_with_the_differences(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_weights(nn.Linear(3, 2), file, {})
    tensors, _ = load_weights(file)
    with pytest.raises(
        CheckpointError, match=r"another model than big: weight has shape \[2, 3\] in the file, \[4, 3\]"
    ):
        put_weights(nn.Linear(3, 4), tensors, file, "big")
    with pytest.raises(CheckpointError, match=r"0\.weight is missing in the file.*1 more difference"):
        put_weights(nn.Sequential(nn.Linear(3, 2)), tensors, file, "other")


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_weights(nn.Linear(3, 2), file, {})
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        load_weights(file)


def test_a_full_disk_leaves_the_former_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pt"
    save_state(make_state(), file)
    before = file.read_bytes()

    def fill_the_disk(content: object, stream: Any) -> None:
        stream.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fill_the_disk)
    with pytest.raises(RunError, match=r"a\.pt cannot be written.*No space left.*Free some space"):
        save_state(make_state(), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_for_another_reason_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"file/a\.pt cannot be written.*Look at the folder"):
        save_state(make_state(), tmp_path / "file" / "a.pt")


def test_a_supernets_checkpoint_loads_as_the_tiny_nets_weights(tmp_path: Path, supernet: Any, model: nn.Module) -> None:
    save_state(replace(make_state(), weights=supernet.state_dict()), tmp_path / "netaug.pt")
    tensors, _ = load_weights(tmp_path / "netaug.pt")
    assert list(tensors) == list(model.state_dict())
    assert all(torch.equal(tensors[name], value) for name, value in supernet.target_state_dict().items())


@pytest.mark.parametrize("name", ["state_dict", "model", "state_dict_ema"])
def test_weights_are_found_where_other_trainers_keep_them(tmp_path: Path, name: str) -> None:
    net = nn.Linear(3, 2)
    wrapped = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 3, name: wrapped}, tmp_path / "last.pth")
    tensors, _ = load_weights(tmp_path / "last.pth")
    assert list(tensors) == ["weight", "bias"]
    assert torch.equal(tensors["weight"], net.weight)
