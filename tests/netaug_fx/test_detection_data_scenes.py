"""Glyph scenes: the same in any batch and at any size, boxes tight around the ink, readable as COCO."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from netaug_fx.errors import DataError, InputError
from netaug_fx.training.data import glyphs, pictures
from netaug_fx.training.data.task import resized
from netaug_fx.training.detection import (
    DetectionDataConfig,
    SceneConfig,
    Scenes,
    load_detection_task,
    scene_batch,
    write_coco,
)
from netaug_fx.training.detection import scenes as scenes_module
from netaug_fx.training.detection.scene_data import MEAN, STD, VALIDATION_SEED
from netaug_fx.training.detection.scenes import scene_classes

# White on black, without what would hide the edges of the ink.
CLEAN = SceneConfig(contrast=1, texture=0, noise=0)


def config_for(**settings: object) -> DetectionDataConfig:
    return DetectionDataConfig.model_validate({"train_samples": 8, "val_samples": 4, **settings})


def shared(a: Tensor, b: Tensor) -> float:
    """The part of the smaller box that two have in common."""
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    return float(sides.prod() / min(float((box[2:] - box[:2]).prod()) for box in (a, b)))


def test_a_scene_is_the_same_in_any_batch() -> None:
    indices = [3, 700, 0, 12345]
    together, targets = scene_batch(indices, seed=5)
    assert (together.shape, together.dtype) == ((4, 1, 160, 160), torch.uint8)
    for index, image, target in zip(indices, together, targets, strict=True):
        alone, (only,) = scene_batch([index], seed=5)
        assert torch.equal(alone[0], image)
        assert all(torch.equal(only[name], values) for name, values in target.items())
    assert not torch.equal(scene_batch(indices, seed=6)[0], together)
    assert scene_batch([], seed=5)[0].shape == (0, 1, 160, 160)


def test_scenes_have_one_to_eight_characters_of_all_classes_within_the_image() -> None:
    _, targets = scene_batch(range(400), seed=0)
    counts = Counter(len(target["labels"]) for target in targets)
    assert set(counts) == set(range(1, 9))
    assert min(counts.values()) > 20
    labels = Counter(torch.cat([target["labels"] for target in targets]).tolist())
    assert set(labels) == set(range(10))
    assert max(labels.values()) < 2 * min(labels.values())
    boxes = torch.cat([target["boxes"] for target in targets])
    assert (float(boxes.min()), float(boxes.max())) == (0, 160)
    assert torch.equal(boxes, boxes.round())
    heights = boxes[:, 3] - boxes[:, 1]
    assert 12 < float(heights.min()) < 20 < 50 < float(heights.max()) < 70
    assert not torch.cat([target["ignore"] for target in targets]).any()


@pytest.mark.parametrize("rotation", [0.0, 20.0, 180.0])
def test_boxes_are_tight_around_the_ink(rotation: float) -> None:
    style = CLEAN.model_copy(update={"most": 1, "rotation": rotation, "characters": "all"})
    images, targets = scene_batch(range(200), seed=1, style=style)
    for image, target in zip(images, targets, strict=True):
        # Pixels are rounded, so those of a fifth of full ink may be just above or below.
        inner, outer = (torch.tensor(scenes_module._bounds((image[0] > least).numpy())) for least in (51, 50))
        box = target["boxes"][0]
        assert ((outer[:2] <= box[:2]) & (box[:2] <= inner[:2])).all()
        assert ((inner[2:] <= box[2:]) & (box[2:] <= outer[2:])).all()
        # Whole characters: nothing was cut off where a patch ends.
        assert int(image[0].max()) > 200


def test_no_character_reaches_out_of_its_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    borders = []
    tight = scenes_module._tight

    def looked_at(inks: np.ndarray) -> object:
        borders.append(max(inks[:, 0].max(), inks[:, -1].max(), inks[:, :, 0].max(), inks[:, :, -1].max()))
        return tight(inks)

    monkeypatch.setattr(scenes_module, "_tight", looked_at)
    scene_batch(range(300), seed=2, style=SceneConfig(rotation=180, characters="all", size=(0.05, 0.6)))
    assert len(borders) > 4
    assert max(borders) == 0


def test_overlaps_are_limited_and_what_finds_no_place_is_left_out() -> None:
    for overlap in (0.0, 0.1):
        _, targets = scene_batch(range(150), seed=3, style=SceneConfig(overlap=overlap))
        pairs = [shared(a, b) for t in targets for i, a in enumerate(t["boxes"]) for b in t["boxes"][:i]]
        assert max(pairs) <= overlap
    crowded = SceneConfig(overlap=0.0, size=(0.6, 0.6), most=32)
    assert 0 < max(len(target["labels"]) for target in scene_batch(range(60), seed=0, style=crowded)[1]) < 12


def test_each_box_holds_the_character_that_its_label_says() -> None:
    style = CLEAN.model_copy(update={"most": 1, "rotation": 0.0, "size": (0.5, 0.5)})
    images, targets = scene_batch(range(60), seed=4, style=style)
    drawn = glyphs.drawings(40, torch.device("cpu"), glyphs.CHARACTERS[:10]).view(10, -1, 80, 80)
    known = torch.stack([resized(torch.from_numpy(cut(d.numpy()))[None, None], 24) for c in drawn for d in c]).flatten(
        1
    )
    right = 0
    for image, target in zip(images, targets, strict=True):
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        seen = resized(image[None, :, y1:y2, x1:x2], 24).flatten(1)
        nearest = (known.float() - seen.float()).abs().mean(1).argmin()
        right += int(nearest) // drawn.shape[1] == int(target["labels"])
    assert right >= 58


def cut(drawing: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = scenes_module._bounds(drawing > 51)
    return np.ascontiguousarray(drawing[y1:y2, x1:x2])


def test_style_does_what_it_is_called() -> None:
    plain = scene_batch(range(50), seed=0, style=CLEAN)[0]
    # With full contrast the ground is black.
    assert float((plain == 0).float().mean()) > 0.6
    inverted = scene_batch(range(50), seed=0, style=CLEAN.model_copy(update={"inverted": 1.0}))[0]
    assert torch.equal(inverted, 255 - plain)
    noisy = scene_batch(range(50), seed=0, style=SceneConfig(contrast=0.2, texture=0, noise=0.3, most=1))[0].float()
    still = scene_batch(range(50), seed=0, style=SceneConfig(contrast=0.2, texture=0, noise=0, most=1))[0].float()
    spread = (noisy - still).flatten(1).std(1) / 255
    assert 0.1 < float(spread.max()) < 0.3
    assert float(spread.min()) < 0.05
    uneven = scene_batch(range(50), seed=0, style=SceneConfig(contrast=0.2, texture=0.5, noise=0, most=1))[0].float()
    assert float((uneven - still).abs().amax((1, 2, 3)).max()) > 30
    assert len(scene_classes(SceneConfig(characters="all"))) == 62


def test_statistics_are_those_of_the_default_style() -> None:
    pixels = scene_batch(range(600), seed=11)[0].float() / 255
    assert float(pixels.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(pixels.std()) == pytest.approx(STD, abs=0.02)


def test_a_scene_is_the_same_at_each_resolution() -> None:
    small, large = (load_detection_task(config_for(image_size=side), seed=0) for side in (48, 120))
    assert (small.image_size, large.image_size, small.channels) == (48, 120, 1)
    for index in range(4):
        (a, target), (b, other) = (task.val.samples([index])[0] for task in (small, large))
        assert torch.equal(a, b)
        assert torch.equal(target["boxes"], other["boxes"])
    assert small.example().shape == (2, 1, 48, 48)


def test_training_depends_on_the_seed_and_validation_does_not() -> None:
    first, second = (load_detection_task(config_for(), seed) for seed in (0, 1))
    assert torch.equal(first.val.samples([2])[0][0], second.val.samples([2])[0][0])
    assert not torch.equal(first.train.samples([2])[0][0], second.train.samples([2])[0][0])
    assert VALIDATION_SEED < 0
    assert first.val.name(2) == "scene 2 of seed -1"
    assert (len(first.train), len(first.val), first.classes, first.notes()) == (8, 4, tuple("0123456789"), [])
    assert not first.changes.flip


def test_fresh_epochs_have_scenes_of_their_own() -> None:
    fresh, again = (load_detection_task(config_for(fresh=value), seed=0).train for value in (True, False))
    expected = scene_batch([1 + 3 * 8], seed=0)
    assert torch.equal(fresh.samples([1], epoch=3)[0][0], expected[0][0])
    assert torch.equal(fresh.target(1, epoch=3)["boxes"], expected[1][0]["boxes"])
    assert torch.equal(again.samples([1], epoch=3)[0][0], again.samples([1], epoch=0)[0][0])


def test_scenes_that_do_not_fit_into_memory_are_rendered_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Scenes(40, 0).hold()
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    lazy = Scenes(40, 0).hold()
    assert (held._held is None, lazy._held is None) == (False, True)
    for (a, first), (b, second) in zip(held.samples([39, 0]), lazy.samples([39, 0]), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(first["boxes"], second["boxes"])


def test_scenes_written_as_coco_are_read_back(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "new" / "scenes", train=5, val=3, seed=7)
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", "train2017", "val2017"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scenes"]
    task = load_detection_task(config_for(name="coco", dir=str(folder), image_size=64), seed=0)
    assert (task.classes, task.notes()) == (tuple("0123456789"), [])
    for source, ours in ((task.train, Scenes(5, 7)), (task.val, Scenes(3, VALIDATION_SEED))):
        assert len(source) == len(ours)
        for index in range(len(ours)):
            (picture, target), (expected, wanted) = source.samples([index])[0], ours.samples([index])[0]
            assert torch.equal(picture, expected.expand(3, -1, -1))
            assert all(torch.equal(target[name], wanted[name]) for name in wanted)
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in content["annotations"])


def test_writing_leaves_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert (write_coco(tmp_path / "empty", train=1, val=1, suffix=".jpg") / "val2017" / "000000000001.jpg").is_file()
    with pytest.raises(DataError, match=r"cannot be written to \S*empty: it exists\. Delete it"):
        write_coco(tmp_path / "empty", train=1, val=1)
    with pytest.raises(InputError, match=r"suffix is '\.foo'; expected \.png or \.jpg"):
        write_coco(tmp_path / "foo", train=1, val=1, suffix=".foo")

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"cannot be written to \S*other: disk full"):
        write_coco(tmp_path / "other", train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ({"size": [0.5, 0.2]}, "data.scenes.size is two ascending parts"),
        ({"size": [0.1, 0.9]}, "data.scenes.size is two ascending parts"),
        ({"characters": "letters"}, "'digits' or 'all'"),
        ({"colour": 3}, "colour"),
    ],
)
def test_styles_that_do_not_fit_are_refused(style: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_for(scenes=style)
