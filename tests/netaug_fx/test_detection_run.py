"""`netaug-fx train --task detect`: files, figures, going on after a stop, weights to start from, nets of one's own."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.cli import main
from netaug_fx.errors import CheckpointError, InputError
from netaug_fx.models import detection as zoo
from netaug_fx.models import scenes_net
from netaug_fx.passes.onnx_export import run_onnx
from netaug_fx.step import total_loss
from netaug_fx.training.checkpoint import load_weights, save_weights
from netaug_fx.training.config import load_config
from netaug_fx.training.detection import load_detection_task, run
from netaug_fx.training.detection.detect_config import AnswerConfig, DetectConfig
from netaug_fx.training.detection.detect_report import DECODED
from netaug_fx.training.detection.detector_loading import check_detector, first_detector
from netaug_fx.training.detection.metrics import average_precision
from netaug_fx.training.detection.objective import detections
from netaug_fx.training.interrupt import Interrupted
from tests.netaug_fx import own_detector
from tests.netaug_fx.detection_sets import Object, box, make_coco, make_voc
from tests.netaug_fx.launching import command_line, launch
from tests.netaug_fx.training_runs import assert_same_results, changed, checkpoint, interrupt_at_step, rows_of

STEPS = 3
SMALL = {
    "data.train_samples": 16 * STEPS,
    "data.val_samples": 12,
    "data.image_size": 64,
    "optim.epochs": 2,
    "optim.warmup_epochs": 0.5,
    "netaug.ratio": 2.0,
    "detect.score": 0.0,
    "detect.shown_score": 0.0,
}
FILES = {
    *("config.yaml", "metrics.csv", "report.json", "report.html"),
    *("tiny.safetensors", "baseline.safetensors", "tiny.onnx", "tiny.decoded.onnx"),
    *(f"checkpoints/{arm}.{kind}" for arm in ("baseline", "netaug") for kind in ("pt", "best.safetensors")),
}


def call(*words: object) -> int:
    """The exit code of ``netaug-fx`` with these words."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def config() -> DetectConfig:
    return load_config(DetectConfig, None, SMALL)


@pytest.fixture(scope="module")
def finished(config: DetectConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.start(config, tmp_path_factory.mktemp("detect") / "whole")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own answer to Ctrl-C: programs that a shell starts in the background are born without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_run_writes_all_its_files_and_nothing_else(finished: Path) -> None:
    assert {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()} == FILES
    rows = rows_of(finished)
    assert [(row["arm"], row["epoch"]) for row in rows] == [
        (arm, epoch) for arm in ("baseline", "netaug") for epoch in ("1", "2")
    ]
    assert all(0 <= float(row["val_map"]) <= float(row["val_map_50"]) <= 1 for row in rows)
    assert [bool(row["augmented_loss"]) for row in rows] == [False, False, True, True]


def test_the_report_tells_what_was_found(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["task"] == "detect"
    assert report["verification"]["passed"] is True
    names = [check["name"] for check in report["verification"]["checks"]]
    assert names[-2:] == ["onnx on images", "decoded onnx on images"]
    assert list(report["arms"]["netaug"]["by_class"]) == list("0123456789")
    last = rows_of(finished)[-1]
    assert report["arms"]["netaug"]["map"] == pytest.approx(float(last["val_map"]), abs=1e-6)
    assert report["macs"]["tiny"] == report["macs"]["original"]
    assert report["macs"]["widest"]["macs"] > 1.5 * report["macs"]["tiny"]["macs"]


def test_the_page_shows_images_with_boxes_and_needs_no_network(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count('<svg class="boxes"') == 2 * 8  # two arms
    assert page.count("after the epoch that was best on these images") == 2
    assert len(re.findall(r'<g class="truth (?:true|missed)">', page)) >= 2 * 8
    assert re.findall(r'<g class="(?:right|wrong)">', page)
    assert "mean average precision" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_the_files_are_the_trained_detector(finished: Path, config: DetectConfig) -> None:
    task = load_detection_task(config.data, config.seed)
    tensors, facts = load_weights(finished / "tiny.safetensors")
    detector = zoo.create("yolo_scenes", num_classes=10).eval()
    detector.load_state_dict(tensors)
    assert facts["classes"] == list("0123456789")
    image = task.example(1)
    with torch.no_grad():
        boxes, scores = zoo.Decoded(detector)(image)
        found_boxes, found_scores = run_onnx(finished / "tiny.decoded.onnx", image)
    torch.testing.assert_close(torch.from_numpy(found_boxes), boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(torch.from_numpy(found_scores), scores, rtol=1e-3, atol=1e-4)


def test_a_stopped_run_goes_on_within_an_epoch_to_the_same_result(
    finished: Path, config: DetectConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 2 * STEPS + STEPS + 1)
        with pytest.raises(Interrupted, match=f"--resume {folder}"):
            run.start(config, folder)
    assert int(checkpoint(folder, "netaug")["step"]) == STEPS + 1
    assert call("train", "--resume", folder) == 0
    assert_same_results(folder, finished, ["metrics.csv", "tiny.safetensors", "baseline.safetensors", "tiny.onnx"])


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_a_run_on_files_in_half_precision_with_an_average(name: str, tmp_path: Path) -> None:
    """An ignored box, one that cannot be used, and an image without any are in the files."""
    if name == "coco":
        boxes = [box(k + 1, k + 1, 3, [4, 2, 20, 16]) for k in range(3)]
        boxes += [box(8, 1, 7, [0, 0, 9, 9], iscrowd=1), box(9, 2, 7, [5, 5, 0, 0])]
        make_coco(tmp_path / "files", boxes)
    else:
        used: list[Object] = [("cat", (3, 2, 20, 18), False), ("dog", (1, 1, 9, 9), True)]
        objects: list[Object] = [*used, ("cat", (5, 5, 4, 4), False)]
        images = dict.fromkeys("abc", objects) | {"d": []}
        make_voc(tmp_path / "files", "VOC2012", {"train": images, "val": images})
    settings = {
        "model.name": f"{own_detector.__file__}:make",
        "data.name": name,
        "data.dir": str(tmp_path / "files"),
        "data.image_size": 64,
        "data.batch_size": 2,
        "optim.epochs": 2,
        "optim.precision": "bf16",
        "optim.average": 0.5,
        "arms": ["netaug"],
        "detect.score": 0.0,
    }
    folder = run.start(load_config(DetectConfig, None, settings), tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    assert report["verification"]["passed"] is True
    assert report["arms"]["netaug"]["steps"] == 2 * 2
    assert report["arms"]["netaug"]["map"] is not None
    assert any("without area" in note for note in report["notes"])


def test_the_command_line_trains_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("data: {train_samples: 16, val_samples: 4, image_size: 64}\noptim: {epochs: 1}\n")
    words = ["train", "--task", "detect", "--config", settings, "--arms", "baseline", "--out", tmp_path / "run"]
    assert call(*words) == 0
    assert "mean average precision: baseline" in capsys.readouterr().out
    assert call("train", "--task", "segment") == 2
    assert "expected classify or detect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.name": "yolo_scene"}, "yolo_scenes"),
        ({"data.name": "scene"}, "'scenes'"),
        ({"optim.mixup": 0.2}, r"optim\.mixup is for classification"),
        ({"data.batch_size": 64}, "do not fill one batch of 64"),
        ({"model.kwargs": {"dropout": 0.1}}, "unexpected keyword argument 'dropout'"),
        ({"data.dir": "somewhere"}, "--data scenes reads no folder, and --data-dir somewhere is given"),
        ({"model.name": f"{own_detector.__file__}:make_choosing"}, r"by score or by suppression.*in a method `detect`"),
        ({"distill.in_place": True}, r"--task detect has no setting 'distill\.in_place' \(--in-place\); leave it out"),
    ],
)
def test_what_cannot_be_is_told_before_a_folder_is_made(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(netaug_fx.NetAugError, match=message):
        run.start(load_config(DetectConfig, None, {**SMALL, **settings}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_judge_every_image_once(config: DetectConfig, tmp_path: Path) -> None:
    """Seventy validation images in batches of 32 do not go up in two processes: what is repeated is left out."""
    settings: dict[str, Any] = {"optim__epochs": 1, "arms": ["netaug"], "data__batch_size": 8, "device": "cpu"}
    settings |= {
        "data__val_samples": 70,
        "optim__average": 0.5,
        "keep__deliver": "best",
    }
    (tmp_path / "settings.yaml").write_text(changed(config, **settings).to_yaml())
    words = ("train", "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "run"))
    launch(command_line, *words, folder=tmp_path / "printed")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["arms"]["netaug"]["steps"] == STEPS
    assert report["arms"]["netaug"]["map"] > 0
    # the report judges once more, in one process
    assert report["arms"]["netaug"]["map"] == pytest.approx(float(rows_of(tmp_path / "run")[-1]["val_map"]), abs=1e-6)


# -- what weights start from ---------------------------------------------------------------------------------------


def test_a_trained_classifier_becomes_the_backbone(config: DetectConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    classifier = scenes_net()
    save_weights(classifier, tmp_path / "classifier.safetensors", {"model": "scenes_net"})
    task = load_detection_task(config.data, config.seed)
    started = changed(config, model__weights=str(tmp_path / "classifier.safetensors"))
    detector, plain = first_detector(started, task), first_detector(config, task)
    assert torch.equal(detector.backbone.stem.conv.weight, classifier.stem.conv.weight)
    assert not torch.equal(plain.backbone.stem.conv.weight, classifier.stem.conv.weight)
    for name, value in detector.state_dict().items():
        assert name.startswith("backbone.") or torch.equal(value, plain.state_dict()[name]), name


def test_a_detector_of_other_classes_keeps_all_but_its_outputs(config: DetectConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = zoo.create("yolo_scenes", num_classes=3)
    save_weights(other, tmp_path / "other.safetensors", {"model": "yolo_scenes", "classes": ["a", "b", "c"]})
    task = load_detection_task(config.data, config.seed)
    detector = first_detector(changed(config, model__weights=str(tmp_path / "other.safetensors")), task)
    same = {name: torch.equal(v, other.state_dict()[name]) for name, v in detector.state_dict().items() if v.ndim > 1}
    unlike = [name for name, equal in same.items() if not equal]
    assert unlike
    assert all(detector.state_dict()[name].shape != other.state_dict()[name].shape for name in unlike)


def test_weights_of_something_else_are_refused(config: DetectConfig, tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 3), tmp_path / "linear.safetensors", {})
    task = load_detection_task(config.data, config.seed)
    with pytest.raises(CheckpointError, match=r"linear\.safetensors, for the backbone of yolo_scenes: none of"):
        first_detector(changed(config, model__weights=str(tmp_path / "linear.safetensors")), task)


# -- detectors of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["make", "make_lists"])
def test_a_detector_of_ones_own_is_trained_too(function: str, tmp_path: Path) -> None:
    settings = {**SMALL, "model.name": f"{own_detector.__file__}:{function}", "optim.epochs": 1}
    folder = run.start(load_config(DetectConfig, None, settings), tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    assert report["verification"]["passed"] is True
    assert report["arms"]["netaug"]["steps"] == STEPS
    assert "is no netaug_fx.models.detection.Detector" in report["no_decoded_onnx"]
    assert not (folder / "tiny.decoded.onnx").exists()


def test_a_classifier_is_no_detector(config: DetectConfig) -> None:
    task = load_detection_task(config.data, config.seed)
    with pytest.raises(InputError, match="model scenes_net cannot take images of shape"):
        check_detector(scenes_net(), task, AnswerConfig(), "scenes_net")


def test_trying_a_detector_leaves_it_as_it_was(config: DetectConfig) -> None:
    task = load_detection_task(config.data, config.seed)
    net = zoo.create("yolo_scenes", num_classes=10).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_detector(net, task, AnswerConfig(), "yolo_scenes")
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("losses", [torch.zeros(()), {}, {"a": torch.zeros(2)}, {"a": 1.0}])
def test_what_is_no_dict_of_losses_is_refused(losses: Any) -> None:
    with pytest.raises(InputError, match="expected a dict of losses by name"):
        total_loss(losses)


def test_lists_of_detections_are_taken_as_they_are() -> None:
    images = torch.zeros(1, 1, 8, 8)
    answer = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}]
    assert len(detections(nn.Identity(), answer, images, AnswerConfig(), 2)[0]["scores"]) == 0
    boxes, scores = torch.rand(3, 4), torch.tensor([0.3, 0.001, 0.9])
    found = [{"boxes": boxes, "scores": scores, "labels": torch.tensor([0, 1, 1])}]
    (kept,) = detections(nn.Identity(), found, images, AnswerConfig(), 2)
    assert torch.equal(kept["scores"], torch.tensor([0.9, 0.3]))
    assert torch.equal(kept["boxes"], boxes[[2, 0]])
    with pytest.raises(InputError, match=r"labels from 0 to 1; the data has 1 classes, numbered from 0"):
        detections(nn.Identity(), found, images, AnswerConfig(), 1)
    with pytest.raises(InputError, match="detections without the tensors boxes, scores, labels"):
        detections(nn.Identity(), [{"scores": scores}], images, AnswerConfig(), 2)
    with pytest.raises(InputError, match=r"Identity gives Tensor for images; .*a method detect\(predictions, size\)"):
        detections(nn.Identity(), torch.zeros(1), images, AnswerConfig(), 2)
    with pytest.raises(InputError, match=r"the detections of each of 1 images, found 2 of them"):
        detections(nn.Identity(), found * 2, images, AnswerConfig(), 2)


def test_detections_that_are_no_numbers_find_nothing() -> None:
    """COCO's evaluation would take them for perfect ones."""
    box = torch.tensor([[1.0, 1.0, 5.0, 5.0]])
    target = {"boxes": box, "labels": torch.tensor([0])}
    for boxes, score in ((box * torch.nan, 0.9), (box, torch.nan), (box, 0.9)):
        answer = [{"boxes": boxes, "scores": torch.tensor([score]), "labels": torch.tensor([0])}]
        (kept,) = detections(nn.Identity(), answer, torch.zeros(1, 1, 8, 8), AnswerConfig(), 1)
        sound = bool(boxes.isfinite().all()) and score == score
        assert average_precision([(kept, target)], ["a"])["map"] == (1.0 if sound else 0.0)


def test_one_validation_image_is_enough_to_try_a_detector(config: DetectConfig) -> None:
    task = load_detection_task(changed(config, data__val_samples=1).data, config.seed)
    assert len(task.val) == 1
    check_detector(zoo.create("yolo_scenes", num_classes=10), task, AnswerConfig(), "yolo_scenes")


# -- other verbs on detectors --------------------------------------------------------------------------------------


def test_other_verbs_know_detectors(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("count", "yolo_scenes") == 0
    assert "2,957,184" in capsys.readouterr().out
    assert call("verify", finished / "tiny.safetensors") == 0
    assert call("export", finished / "tiny.safetensors", "--out", tmp_path / "again.onnx") == 0
    assert (tmp_path / "again.onnx").stat().st_size > 0
    assert call("export", finished / "tiny.safetensors", "--decoded", "--out", tmp_path / "decoded.onnx") == 0
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for one, other in zip(*(run_onnx(f, image) for f in (tmp_path / "decoded.onnx", finished / DECODED)), strict=True):
        assert one.tolist() == other.tolist()
    assert call("inspect", "ssdlite_scenes") == 0
    for words, message in (
        (("train", "--model", "yolo_scenes", "--out", tmp_path / "run"), "is a detector"),
        (("train", "--data", "coco"), "It has boxes: give --task detect"),
        (("train", "--task", "detect", "--config", "mobilenet_v2_tiny"), "is a recipe for classifiers"),
        (("count", "yolo_nope"), "yolo_mobilenet_v2_tiny"),
        (("verify", finished), "Give a file in it"),
    ):
        assert call(*words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
