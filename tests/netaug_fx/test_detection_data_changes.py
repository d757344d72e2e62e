"""Changes move boxes with their pixels and follow from (seed, epoch, index) alone, in any worker and after a stop."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from netaug_fx.errors import DataError
from netaug_fx.training.data.counters import key_of
from netaug_fx.training.detection import (
    BoxChanges,
    DetectionBatch,
    DetectionDataConfig,
    Target,
    load_detection_task,
    make_loaders,
    to_own_size,
)
from netaug_fx.training.detection.annotations import make_target
from netaug_fx.training.detection.changes import mirrored, squared
from tests.netaug_fx.detection_sets import coco_config, make_coco

ALL: dict[str, Any] = {
    "zoom_out": 3.0,
    "iou_crop": True,
    "scale_jitter": [0.5, 1.5],
    "brightness": 0.3,
    "saturation": 0.3,
}


def blocks(height: int = 48, width: int = 80) -> tuple[Tensor, Target]:
    """A black image with two blocks, one of them red and one green, and their boxes; the second is a crowd."""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    boxes = torch.tensor([[8, 4, 24, 20], [40, 24, 72, 40]])
    for channel, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        picture[channel, y1:y2, x1:x2] = 255
    return picture, make_target(boxes, [3, 5], [False, True])


def ink(picture: Tensor, channel: int) -> list[float]:
    """The corners of what is bright in a channel."""
    rows, columns = (picture[channel] > 127).nonzero().unbind(1)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def same(a: DetectionBatch, b: DetectionBatch) -> bool:
    """Whether two batches are equal bit for bit."""
    targets = zip(a[1], b[1], strict=True)
    return torch.equal(a[0], b[0]) and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in targets
    )


def test_stretching_and_mirroring_are_torchvisions() -> None:
    picture, target = blocks()
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(48, 80))
    theirs = v2.Compose([v2.RandomHorizontalFlip(p=1.0), v2.Resize((32, 32))])
    expected, moved = theirs(tv_tensors.Image(picture), boxes)
    ours, there = squared(*mirrored(picture, target), 32)
    assert torch.allclose(there["boxes"], moved.as_subclass(Tensor), atol=1e-5)
    assert int((ours.int() - expected.as_subclass(Tensor).int()).abs().max()) <= 1
    other = mirrored(*squared(picture, target, 32))
    assert torch.allclose(other[1]["boxes"], there["boxes"], atol=1e-5)
    assert int((other[0].int() - ours.int()).abs().max()) <= 1
    assert torch.equal(there["labels"], target["labels"])
    assert torch.equal(there["ignore"], target["ignore"])


def test_half_of_the_images_are_mirrored_and_by_their_key_alone() -> None:
    picture, target = blocks()
    plain, still = squared(picture, target, 40)
    flipped = [torch.equal(BoxChanges(40, flip=True)(picture, target, key)[0], plain) for key in range(200)]
    assert 70 < sum(flipped) < 130
    same_draws = BoxChanges(40, flip=True, scale_jitter=(1.0, 1.0))
    assert flipped == [torch.equal(same_draws(picture, target, key)[0], plain) for key in range(200)]
    unchanged, boxes = BoxChanges(40)(picture, target, 3)
    assert torch.equal(unchanged, plain)
    assert torch.equal(boxes["boxes"], still["boxes"])


@pytest.mark.parametrize(
    "changes",
    [
        BoxChanges(64, flip=True),
        BoxChanges(64, zoom_out=4.0, fill=(0, 0, 0)),
        BoxChanges(64, iou_crop=True),
        BoxChanges(64, scale_jitter=(0.5, 1.6), fill=(0, 0, 0)),
        BoxChanges(64, True, 3.0, True, (0.6, 1.4), 0.2, 0.0, (0, 0, 0)),
    ],
)
def test_boxes_stay_around_what_they_are_of(changes: BoxChanges) -> None:
    picture, target = blocks()
    seen = set()
    for key in range(60):
        changed, moved = changes(picture, target, key)
        assert (changed.shape, changed.dtype) == ((3, 64, 64), torch.uint8)
        assert type(changed) is type(moved["boxes"]) is Tensor
        assert moved["boxes"].dtype == torch.float32
        for box, label, ignore in zip(moved["boxes"], moved["labels"].tolist(), moved["ignore"].tolist(), strict=True):
            assert bool(ignore) == (label == 5)
            assert (torch.tensor(ink(changed, label // 4)) - box).abs().max() <= 2.5
        seen.add(changed.numpy().tobytes())
    assert len(seen) > 1


def test_boxes_that_vanish_are_dropped() -> None:
    picture, target = blocks()
    thin = make_target([[0, 0, 80, 0.5], [0, 0, 40, 40]], [0, 1])
    assert BoxChanges(48)(picture, thin, 0)[1]["labels"].tolist() == [1]
    numbers = [len(BoxChanges(64, scale_jitter=(2.0, 3.0))(picture, target, key)[1]["labels"]) for key in range(40)]
    assert set(numbers) == {0, 1}
    cropped = [BoxChanges(64, iou_crop=True)(picture, target, key)[1] for key in range(40)]
    assert {len(target["labels"]) for target in cropped} == {1, 2}


def test_an_image_without_boxes_goes_through_all_changes() -> None:
    changes = BoxChanges(32, True, 2.0, True, (0.5, 2.0), 0.5, 0.5, (9, 9, 9))
    for key in range(10):
        changed, target = changes(blocks()[0], make_target([], []), key)
        assert (changed.shape, target["boxes"].shape, target["labels"].shape) == ((3, 32, 32), (0, 4), (0,))


def test_changes_draw_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    BoxChanges(32, True, 2.0, True, (0.5, 2.0), 0.5, 0.5, (9, 9, 9))(*blocks(), 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_boxes_go_back_to_the_images_own_size() -> None:
    picture, target = blocks()
    boxes = squared(picture, target, 33)[1]["boxes"]
    assert torch.allclose(to_own_size(boxes, torch.tensor([48, 80]), 33), target["boxes"])


def test_torchvision_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_coco(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    for name, value in ALL.items():
        with pytest.raises(
            DataError, match=r"need torchvision .*pip install 'netaug_fx\[data\]'.*data\.flip"
        ) as caught:
            load_detection_task(coco_config(root, **{name: value}), seed=0)
        assert f"data.{name}" in str(caught.value)
    config = coco_config(root)
    loader, _, _ = make_loaders(load_detection_task(config, seed=0), config, seed=0)
    assert len(list(loader)) == 2


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("photographs"), images=9)


def epoch_of(config: DetectionDataConfig, epoch: int = 1, start: int = 0, seed: int = 0) -> list[DetectionBatch]:
    loader, order, _ = make_loaders(load_detection_task(config, seed=0), config, seed)
    order.epoch, order.start = epoch, start
    return list(loader)


@pytest.mark.parametrize("settings", [{}, ALL])
def test_a_run_resumed_in_an_epoch_with_workers_sees_the_same(photographs: Path, settings: dict[str, Any]) -> None:
    config = coco_config(photographs, **settings)
    here = epoch_of(config)
    assert [images.shape for images, _ in here] == [(2, 3, 16, 16)] * 4
    rest = epoch_of(config.model_copy(update={"workers": 2}), start=2)
    assert len(rest) == 2
    assert all(same(*pair) for pair in zip(here[2:], rest, strict=True))
    assert not same(here[0], epoch_of(config, epoch=2)[0])
    assert not same(here[0], epoch_of(config, seed=1)[0])


def test_scenes_are_the_same_in_workers_and_in_other_batches() -> None:
    settings = {"train_samples": 12, "val_samples": 2, "image_size": 40, "batch_size": 4, **ALL}
    config = DetectionDataConfig.model_validate(settings)
    here = epoch_of(config)
    there = epoch_of(config.model_copy(update={"workers": 2}))
    assert all(same(*pair) for pair in zip(here, there, strict=True))
    pairs = epoch_of(config.model_copy(update={"batch_size": 2}))
    assert torch.equal(torch.cat([images for images, _ in here]), torch.cat([images for images, _ in pairs]))


def test_an_image_is_changed_by_seed_epoch_and_index(photographs: Path) -> None:
    config = coco_config(photographs)
    task = load_detection_task(config, seed=0)
    loader, order, _ = make_loaders(task, config, seed=3)
    order.epoch = 4
    indices = next(iter(order))
    images, targets = next(iter(loader))
    for place, index in enumerate(indices):
        image, target = task.changes(*task.train.samples([index])[0], key_of(3, 4, index))
        assert torch.equal(images[place], task.normalised([image])[0])
        assert torch.equal(targets[place]["boxes"], target["boxes"])


def test_validation_has_every_image_once_and_says_how_large_it_is(photographs: Path) -> None:
    config = coco_config(photographs)
    task = load_detection_task(config, seed=0)
    _, _, val = make_loaders(task, config, seed=0)
    batches = list(val)
    targets = [target for _, batch in batches for target in batch]
    assert (sum(len(images) for images, _ in batches), len(targets)) == (9, 9)
    for index, target in enumerate(targets):
        assert target["size"].tolist() == [20, 40]
        own = task.val.target(index)["boxes"]
        assert torch.allclose(target["boxes"], own * torch.tensor([16 / 40, 16 / 20] * 2))
        assert torch.allclose(to_own_size(target["boxes"], target["size"], 16), own)
    assert torch.equal(batches[0][0][:2], task.example())


@pytest.mark.parametrize("factors", [[1.5, 0.5], [0.01, 1.0], [1.0, 11.0]])
def test_factors_that_do_not_fit_are_refused(factors: list[float]) -> None:
    with pytest.raises(ValueError, match=r"data\.scale_jitter is two factors"):
        DetectionDataConfig.model_validate({"scale_jitter": factors})
