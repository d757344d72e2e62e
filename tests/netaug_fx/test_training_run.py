"""Whole runs: what is written, and what stops a run or keeps it from starting."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from netaug_fx.errors import DataError, ExportError, InputError, NetAugError, RunError
from netaug_fx.training import engine, run
from netaug_fx.training.arm import Arm, build_net, make_optimizer
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.data import load_task
from netaug_fx.training.methods import method_of
from netaug_fx.training.run_folder import accelerator_for, default_folder
from tests.netaug_fx.training_runs import CHECKPOINTS, EPOCHS, FILES, STEPS, at_step, changed, rows_of


def test_a_run_writes_all_its_files_and_nothing_else(finished: Path) -> None:
    present = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    assert present == {*FILES, "report.json", "report.html", *CHECKPOINTS}


def test_metrics_have_a_row_for_each_arm_and_epoch(finished: Path) -> None:
    rows = rows_of(finished)
    assert [(row["arm"], row["epoch"], row["step"]) for row in rows] == [
        (arm, str(epoch), str(epoch * STEPS)) for arm in ("baseline", "netaug") for epoch in range(1, EPOCHS + 1)
    ]
    assert all((row["augmented_loss"] == "") == (row["arm"] == "baseline") for row in rows)
    assert float(rows[-1]["train_loss"]) < float(rows[EPOCHS]["train_loss"])


def test_the_report_tells_of_a_verified_net(finished: Path, config: TrainConfig) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["verification"]["passed"] is True
    assert report["macs"]["tiny"] == report["macs"]["original"]
    assert report["macs"]["widest"]["macs"] > report["macs"]["tiny"]["macs"]
    assert [group["choices"] for group in report["groups"]] == [[4, 6, 8], [8, 12, 16], [6, 9, 12]]
    assert report["arms"]["netaug"]["steps"] == report["arms"]["baseline"]["steps"] == EPOCHS * STEPS
    assert TrainConfig.model_validate(report["config"]) == config == load_config(TrainConfig, finished / "config.yaml")


def test_the_weights_file_says_what_is_needed_to_use_it(finished: Path, config: TrainConfig) -> None:
    tensors, facts = load_weights(finished / "tiny.safetensors")
    assert facts["model"] == config.model.name
    assert (facts["num_classes"], facts["in_channels"], facts["image_size"]) == (10, 1, 8)
    assert not any("netaug" in key for key in tensors)


def test_both_arms_start_from_the_same_weights(config: TrainConfig) -> None:
    task = load_task(config.data, config.seed)
    baseline = build_net(config, task, "baseline").state_dict()
    supernet: Any = build_net(config, task, "netaug")
    target = supernet.target_state_dict()
    assert list(baseline) == list(target)
    assert all(torch.equal(baseline[key], target[key]) for key in baseline)


def test_checkpoints_load_without_running_code_and_hold_the_drawn_widths(finished: Path) -> None:
    content = torch.load(finished / "checkpoints" / "netaug.pt", weights_only=True)
    assert content["epoch"] == EPOCHS
    assert any("netaug" in key for key in content["weights"])
    assert all(isinstance(content["rng"][0][name], Tensor) for name in ("python", "numpy", "torch"))


def test_the_loss_follows_alpha_and_phase_two_widens_inner_groups_only(config: TrainConfig, tmp_path: Path) -> None:
    """The gradient of a step is that of the target plus alpha times that of the drawn net."""
    task = load_task(config.data, config.seed)
    accelerator = accelerator_for(config)

    def gradient(alpha: float) -> Tensor:
        settings = changed(config, netaug__alpha=alpha, netaug__phase_two=1.0, model__name="digits_net")
        net = build_net(settings, task, "netaug")
        arm = Arm(
            "netaug", settings, task, accelerator, net, tmp_path, method_of(net, settings.netaug, settings.distill)
        )
        arm.wrapped.train()
        engine._gradients(arm, next(iter(arm.train_loader)))
        return net.get_parameter("classifier.weight").grad.clone()  # type: ignore[union-attr]

    one, two, three = gradient(1.0), gradient(2.0), gradient(3.0)
    assert torch.allclose(three - two, two - one, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(two, one, rtol=1e-2)

    settings = changed(config, model__name="digits_net")
    supernet: Any = build_net(settings, task, "netaug")
    base = {group.name: group.width for group in supernet.groups}
    kinds = {group.name: group.kind for group in supernet.groups}
    drawn = [supernet.sample(kinds={"inner"}) for _ in range(20)]
    assert all(widths[name] == base[name] for widths in drawn for name in base if kinds[name] == "stream")
    assert any(widths != base for widths in drawn)


def test_biases_and_norms_are_exempt_from_weight_decay(config: TrainConfig) -> None:
    task = load_task(config.data, config.seed)
    net = build_net(config, task, "netaug")
    decayed, exempt = make_optimizer(net, config.optim).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (config.optim.weight_decay, 0)
    assert min(parameter.ndim for parameter in decayed["params"]) == 2
    assert {id(parameter) for parameter in exempt["params"]} >= {id(net.get_parameter("1.weight"))}
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize(("step", "words"), [(STEPS + 2, r"baseline\.pt"), (2, "no checkpoint yet")])
def test_a_loss_that_is_not_finite_stops_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, words: str
) -> None:
    at_step(monkeypatch, step, lambda sums: sums * float("nan"))
    with pytest.raises(RunError, match=rf"no longer finite at step {step}.*{words}.*--lr"):
        run.start(config, tmp_path / "diverged")
    checkpoint = tmp_path / "diverged" / "checkpoints" / "baseline.pt"
    assert checkpoint.exists() == (step > STEPS)
    if checkpoint.exists():
        weights = torch.load(checkpoint, weights_only=True)["weights"]
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def fill_the_disk(content: object, stream: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            stream.write(b"half a file")
            raise OSError(28, "No space left on device")
        save(content, stream)

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(RunError, match="No space left on device"):
        run.start(config, tmp_path / "full")
    assert list((tmp_path / "full").rglob(".*")) == []
    assert torch.load(tmp_path / "full" / "checkpoints" / "baseline.pt", weights_only=True)["epoch"] == 1


def test_a_run_folder_that_exists_is_not_overwritten(finished: Path, config: TrainConfig) -> None:
    with pytest.raises(RunError, match=f"{finished} exists.*--out.*--resume {finished}"):
        run.start(config, finished)


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run folder.*config\.yaml"):
        run.resume(tmp_path)


def one_class(folder: Path) -> dict[str, Any]:
    (folder / "set" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "set" / "cat" / "a.png")
    return {"data__name": str(folder / "set")}


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"model__name": "digit_net"}, InputError, "Did you mean 'digits_net'"),
        ({"model__name": "digits_net", "model__kwargs": {"num_classes": 7}}, InputError, r"\[2, 7\].*10 classes"),
        ({"model__name": "digits_net", "model__kwargs": {"depth": 7}}, InputError, "depth"),
        ({"model__name": "nowhere.py:make"}, InputError, "no file nowhere"),
        ({"opset": 3}, ExportError, "opset"),
        ({"netaug__pin": ["nothing.like.it"]}, InputError, "nothing.like.it"),
        (one_class, DataError, "one class"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_no_folder(
    config: TrainConfig, tmp_path: Path, settings: Any, kind: type[NetAugError], words: str
) -> None:
    changes = settings(tmp_path) if callable(settings) else settings
    with pytest.raises(kind, match=words):
        run.start(changed(config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_folder_trains_with_sorting_to_a_verified_net(config: TrainConfig, tmp_path: Path) -> None:
    for name, colour in {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (24 + index, 20), colour).save(tmp_path / "set" / name / f"{index}.jpg")
    images = {"data__name": str(tmp_path / "set"), "data__image_size": 8, "data__batch_size": 10}
    settings = changed(config, **images, optim__epochs=6, netaug__sort=True, arms=["netaug"])
    report = json.loads((run.start(settings, tmp_path / "run") / "report.json").read_text())
    assert report["verification"]["passed"] is True
    assert report["data"]["classes"] == ["blue", "green", "red"]
    assert report["comparison"] is None
    assert report["arms"]["netaug"]["train_accuracy"] > 0.8


def test_a_function_that_needs_the_number_of_classes_trains_on_a_folder(config: TrainConfig, tmp_path: Path) -> None:
    """The side of the images is asked of the net before the folder is read, and the classes are known."""
    net = tmp_path / "needs.py"
    net.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    net = nn.Sequential(\n"
        "        nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes),\n"
        "    )\n"
        "    net.example_input_shape = (in_channels, 12, 12)\n"
        "    return net\n"
    )
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (14, 14), (index, 0, 9)).save(tmp_path / "set" / label / f"{index}.png")
    images = {"data__name": str(tmp_path / "set"), "data__batch_size": 8}
    settings = changed(config, **images, model__name=f"{net}:make", optim__epochs=1, arms=["baseline"])
    report = json.loads((run.start(settings, tmp_path / "run") / "report.json").read_text())
    assert report["data"]["image_size"] == 12
    assert report["arms"]["baseline"]["steps"] == 2


def test_default_folders_are_named_after_the_run_and_never_taken(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_folder(config)
    assert first.name.startswith("make-digits-")
    first.mkdir(parents=True)
    assert default_folder(config) != first


# The way of its forward depends on values.
UNEXPORTABLE = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x if float(x.sum()) < 1e9 else -x

def make(num_classes=10, in_channels=1):
    return Net(nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def unexportable(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    (tmp_path / "unexportable.py").write_text(UNEXPORTABLE)
    return changed(config, model__name=f"{tmp_path / 'unexportable.py'}:make", optim__epochs=1)


def test_a_net_that_cannot_be_exported_is_delivered_without_onnx(unexportable: TrainConfig, tmp_path: Path) -> None:
    folder = run.start(unexportable, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    assert "export" in report["no_onnx"]
    assert report["verification"]["passed"]
    assert f"There is no ONNX file: {report['no_onnx'][:20]}" in (folder / "report.html").read_text()
    first, *_rest = report["no_onnx"].splitlines()
    assert f"no ONNX file: {first} (more in the report)\n" in run.CLASSIFY.summary(report, folder)
    assert (folder / "tiny.safetensors").exists()
    assert not (folder / "tiny.onnx").exists()


def test_an_opset_that_was_asked_for_is_tried_before_training(unexportable: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        run.start(changed(unexportable, opset=18), tmp_path / "run")
    assert not (tmp_path / "run").exists()
