"""COCO's format and what is wrong with bad files in it: errors that name them, or boxes counted and not lost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from netaug_fx.errors import DataError
from netaug_fx.training.data import pictures
from netaug_fx.training.data.sources import WITH_BOXES
from netaug_fx.training.detection import DetectionDataConfig, DetectionTask, load_detection_task, make_loaders
from netaug_fx.training.detection.annotations import KINDS, Boxes, Collector, make_target
from netaug_fx.training.detection.sources import LOADERS
from tests.netaug_fx.detection_sets import CATEGORIES, box, coco_config, coco_file, make_coco


def coco_task(root: Path, **settings: object) -> DetectionTask:
    return load_detection_task(coco_config(root, **settings), seed=0)


def change(root: Path, **lists: Any) -> Path:
    """Replace lists of the training annotations; None takes one away. Returns the folder."""
    content = json.loads(coco_file(root).read_text())
    content.update(lists)
    coco_file(root).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return root


def test_coco_gives_corners_classes_by_id_and_images_without_boxes(tmp_path: Path) -> None:
    task = coco_task(make_coco(tmp_path))
    assert task.classes == ("cat", "dog")
    assert (len(task.train), len(task.val), task.channels, task.image_size) == (4, 4, 3, 16)
    (picture, target), (_, second), (_, empty) = task.train.samples([0, 1, 3])
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 20, 40))
    assert target["boxes"].tolist() == [[0, 2, 10, 10]]
    assert (target["labels"].tolist(), second["labels"].tolist()) == ([1], [0])
    assert (empty["boxes"].shape, empty["labels"].dtype, empty["ignore"].dtype) == ((0, 4), torch.int64, torch.bool)
    assert task.train.name(3) == "004.png"
    assert task.notes() == []
    assert task.train.skipped.to_dict() == {}


def test_example_is_what_the_net_sees(tmp_path: Path) -> None:
    example = coco_task(make_coco(tmp_path)).example()
    assert example.shape == (2, 3, 16, 16)
    expected = (torch.tensor([0, 10, 200]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(example[0, :, 3, 4], expected, atol=1e-5)


def test_crowds_are_ignored(tmp_path: Path) -> None:
    boxes = [box(1, 1, 3, [0, 0, 5, 5]), box(2, 1, 3, [5, 5, 30, 10], iscrowd=1, segmentation={"counts": []})]
    assert coco_task(make_coco(tmp_path, boxes)).train.target(0)["ignore"].tolist() == [False, True]


def test_flags_may_be_texts(tmp_path: Path) -> None:
    """Some programs write numbers as texts: "0" counted as a crowd."""
    flags: list[Any] = ["0", "1", False, True, None, "yes", [0]]
    boxes = [box(number, 1, 3, [number, 0, 5, 5], iscrowd=flag) for number, flag in enumerate(flags)]
    task = coco_task(make_coco(tmp_path, boxes))
    assert task.train.target(0)["ignore"].tolist() == [False, True, False, True, False]
    assert task.train.skipped.counts == {"malformed": 2}
    assert "iscrowd and ignore ['yes', None]" in task.train.skipped.examples["malformed"]


def test_boxes_that_cannot_be_used_are_counted_with_an_example(tmp_path: Path) -> None:
    boxes = [
        box(1, 1, 3, [30, 10, 20, 20]),
        box(2, 1, 3, [-5, -5, 10, 10]),
        box(3, 1, 3, [50, 5, 10, 10]),
        box(4, 1, 3, [5, 5, 0, 10]),
        box(5, 1, 3, [5, 5, 10, -1]),
        box(6, 1, 3, [float("nan"), 5, 10, 1]),
        box(7, 1, 3, [5, 5, 10**400, 1]),
        box(8, 1, 99, [5, 5, 10, 5]),
        box(9, 77, 3, [5, 5, 10, 5]),
        box(10, 1, 3, [5, 5, 10]),
        box(11, 1, 3, ["5", 5, 10, 5]),
        box(12, 1, None, [5, 5, 10, 5]),
        {"id": 13, "image_id": 1, "category_id": 3},
        "no annotation",
        box(14, 1, 7, [35, 15, 5.01, 5]),
    ]
    task = coco_task(make_coco(tmp_path, boxes))
    expected = [[30, 10, 40, 20], [0, 0, 5, 5], [35, 15, 40, 20]]
    assert task.train.target(0)["boxes"].tolist() == expected
    counts = {kind: facts["count"] for kind, facts in task.train.skipped.to_dict().items()}
    assert counts == {
        "clipped": 2,
        "outside": 1,
        "no_area": 2,
        "not_finite": 2,
        "unknown_class": 1,
        "unknown_image": 1,
        "malformed": 5,
    }
    assert counts.keys() == KINDS.keys() - {"repeated_box", "repeated_image", "trained_on", "turned"}
    notes = "\n".join(task.notes())
    assert "coco, training annotations: boxes that reach out of their image, clipped: 2 (first: annotation 1" in notes
    assert "boxes of a class that is not listed, skipped: 1 (first: annotation 8 in 001.png" in notes
    assert "category 99" in notes
    assert len(task.notes()) == 2 * len(counts)
    json.dumps(task.train.skipped.to_dict(), allow_nan=False)


def test_what_is_there_twice_is_told(tmp_path: Path) -> None:
    boxes = [box(number, 1, 3, [5, 5, 10, 10]) for number in (1, 2)]
    images = [{"id": k, "file_name": "001.png", "width": 40, "height": 20} for k in (1, 2)]
    root = change(make_coco(tmp_path, boxes), images=images)
    task = coco_task(root, val_images="train2017")
    assert task.train.skipped.counts == {"repeated_box": 1, "repeated_image": 1}
    assert task.val.skipped.counts["trained_on"] == 1
    assert len(task.train.target(0)["labels"]) == 2


def test_whole_numbers_may_be_written_as_fractions_and_behind_a_byte_order_mark(tmp_path: Path) -> None:
    root = make_coco(tmp_path, [box(1, 1, 3.0, [5, 5, 10, 10], iscrowd=0.0), box(2, 1.0, 3, [5, 5, 9, 9], iscrowd=1.0)])
    file = coco_file(change(root, images=[{"id": 1, "file_name": "001.png", "width": 40.0, "height": 20.0}]))
    file.write_text(file.read_text(), encoding="utf-8-sig")
    task = coco_task(root)
    assert task.train.target(0)["ignore"].tolist() == [False, True]
    assert task.train.skipped.counts == {}


def test_a_set_with_nothing_to_find_is_refused(tmp_path: Path) -> None:
    root = make_coco(tmp_path, [box(1, 1, 3, [5, 5, 10, 10], iscrowd=1)])
    with pytest.raises(DataError, match=r"no image has a box that can be used: crowds and difficult objects.*: 1"):
        coco_task(root)


def test_images_that_are_turned_without_a_trace_in_their_size_are_counted(tmp_path: Path) -> None:
    """Orientation 3 keeps the size, so that nothing tells on which of the two the boxes were drawn; 6 does not."""
    root = make_coco(tmp_path)
    images = [{"id": k + 1, "file_name": f"00{k + 1}.png", "width": 40, "height": 20} for k in range(4)]
    change(root, images=[images[0], {**images[1], "width": 20, "height": 40}, *images[2:]])
    for name, orientation in (("001.png", 3), ("002.png", 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(root / "train2017" / name) as image:
            image.save(root / "train2017" / name, exif=exif)
    task = coco_task(root)
    assert task.train.skipped.counts == {"turned": 1}
    assert task.train.skipped.examples == {"turned": "001.png"}


def test_sixteen_bits_are_read_as_eight_and_pixels_of_no_known_range_refused(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    values = np.linspace(0, 65535, 800).reshape(20, 40)
    Image.fromarray(values.astype(np.uint16)).save(root / "train2017" / "001.png")
    picture = coco_task(root).train.samples([0])[0][0]
    assert picture.shape == (3, 20, 40)
    assert torch.equal(picture[0], torch.from_numpy((values.astype(np.int64) // 256).astype(np.uint8)))
    Image.fromarray(values.astype(np.float32)).save(root / "train2017" / "001.png", format="TIFF")
    with pytest.raises(DataError, match=r"001\.png cannot be read: pixels of mode 'F' have no known range; save it"):
        coco_task(root).train.samples([0])


def test_a_box_that_clipping_leaves_without_area_is_skipped() -> None:
    collector = Collector([(40, 20)])
    collector.add(0, (40, 0, 50, 10), 0, False, "right of it")
    collector.add(0, (0, -9, 5, 0), 0, False, "above it")
    assert collector.skipped.counts == {"outside": 2}
    with pytest.raises(
        DataError,
        match=r"set: no image has a box that can be used: boxes outside their image, skipped: 2 .*right of it",
    ):
        collector.boxes("set")


def test_boxes_are_found_by_their_image() -> None:
    boxes = Boxes([2, 0, 2], make_target([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]], [5, 6, 7]), 4)
    assert (len(boxes), boxes.total) == (4, 3)
    assert [boxes.target(k)["labels"].tolist() for k in range(4)] == [[6], [], [5, 7], []]
    assert boxes.target(-2)["boxes"].tolist() == [[0, 0, 1, 1], [0, 0, 3, 3]]
    boxes.target(0)["boxes"].zero_()
    assert boxes.target(0)["boxes"].tolist() == [[0, 0, 2, 2]]
    with pytest.raises(IndexError):
        boxes.target(4)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, part: float) -> None:
    file = coco_file(make_coco(tmp_path))
    text = file.read_text()
    file.write_text(text[: int(len(text) * part)])
    with pytest.raises(DataError, match=r"instances_train2017\.json are cut short after .* Get it again"):
        coco_task(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut short after 0 characters"),
        (b"{'images': []}", "are not JSON"),
        (b"\xff\xfe", "are not JSON"),
        (b"<html></html>", "are not JSON"),
        (b'{"images": []} x', "are not JSON"),
        (b'{"images": ' + b"1" * 5000 + b"}", "cannot be read: .*digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "expected a mapping, found list"),
        (b'{"images": [], "annotations": [], "captions": 1}', r"no list 'categories'.*found: images, annotations"),
        (b'{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
    ],
)
def test_a_file_that_is_no_coco_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    coco_file(make_coco(tmp_path)).write_bytes(content)
    with pytest.raises(DataError, match=rf"instances_train2017\.json.*{words}"):
        coco_task(tmp_path)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"annotations": None}, "have no list 'annotations'"),
        ({"images": []}, "list no images"),
        ({"annotations": []}, "no image has a box that can be used: it has none"),
        ({"images": [{"id": 1, "width": 4, "height": 4}]}, "image 0 of the list needs 'file_name', found none"),
        ({"images": [{"id": 1, "file_name": "a", "width": "4"}]}, "needs 'width', found '4'"),
        ({"images": [{"id": 1, "file_name": "a", "width": 4, "height": 0}]}, "image a has 4 x 0 pixels"),
        ({"images": [{"id": 1, "file_name": "a", "width": 4, "height": 4}] * 2}, "two images have the id 1"),
        ({"images": [{"id": 1, "file_name": "a", "width": 10**30, "height": 4}]}, "image a has 1000"),
        ({"images": [{"id": 1, "file_name": "\ud800", "width": 4, "height": 4}]}, r"no file can be called '\ud800'"),
        ({"images": [3]}, "image 0 of the list is no mapping: found 3"),
        ({"categories": []}, "list no categories"),
        ({"categories": [{"id": 1}]}, "category 0 of the list needs 'name'"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "cow"}]}, "two categories have the id 3"),
        ({"categories": [*CATEGORIES, {"id": 4, "name": "cat"}]}, "two categories have the name 'cat'"),
    ],
)
def test_an_entry_that_lacks_something_is_named(tmp_path: Path, lists: dict[str, Any], words: str) -> None:
    change(make_coco(tmp_path), **lists)
    with pytest.raises(DataError) as caught:
        coco_task(tmp_path)
    assert words in str(caught.value)
    assert "instances_train2017.json" in str(caught.value)


def test_missing_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    root = make_coco(tmp_path, images=6)
    for number in (2, 3, 5, 6):
        (root / "val2017" / f"00{number}.png").unlink()
    with pytest.raises(
        DataError, match=r"4 of 6 annotated images are missing: \S*002.png, \S*003.png, \S*005.png, \.\.\."
    ):
        coco_task(root)


def test_a_broken_image_is_named_before_training_or_when_its_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco(tmp_path)
    (root / "train2017" / "002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"002\.png cannot be read"):
        coco_task(root)
    monkeypatch.setattr(pictures, "CHECKED_FILES", 0)
    task = coco_task(root)
    assert len(task.train.samples([0])) == 1
    with pytest.raises(DataError, match=r"002\.png cannot be read"):
        task.train.samples([1])


def test_an_image_of_another_size_than_annotated_is_named(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    Image.new("RGB", (50, 20)).save(root / "train2017" / "003.png")
    with pytest.raises(DataError, match=r"003\.png has 50 x 20 pixels, but its annotations are for 40 x 20"):
        coco_task(root)


def test_an_image_is_turned_as_its_boxes_were_drawn(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    for name, size in (("001.png", (20, 40)), ("002.png", (40, 20))):
        lying = Image.new("RGB", size)
        lying.putpixel((0, 0), (255, 255, 255))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned to the right by a quarter
        lying.save(root / "train2017" / name, exif=exif)
    turned, left = (picture for picture, _ in coco_task(root).train.samples([0, 1]))
    assert turned.shape == left.shape == (3, 20, 40)
    assert int(turned[0, 0, -1]) == int(left[0, 0, 0]) == 255


def test_a_set_of_ones_own_is_read_through_the_settings(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set")
    coco_file(root).rename(root / "mine.json")
    (root / "train2017").rename(root / "pictures")
    with pytest.raises(DataError, match=r"has no annotations/instances_train2017\.json, no train2017.*data\.train_ann"):
        coco_task(root)
    settings = {"train_annotations": "mine.json", "train_images": str(root / "pictures"), "image_size": None}
    task = coco_task(root, **settings)
    assert (task.image_size, task.train.target(1)["boxes"].tolist()) == (416, [[1, 2, 11, 10]])


def test_validation_classes_are_those_of_training_by_name(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    content = json.loads(coco_file(root, "val2017").read_text())
    content["categories"] = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}]
    coco_file(root, "val2017").write_text(json.dumps(content))
    task = coco_task(root)
    assert task.val.target(1)["labels"].tolist() == [1]
    assert task.val.skipped.counts == {"unknown_class": 2}


def test_unknown_names_lead_to_those_alike(tmp_path: Path) -> None:
    assert set(WITH_BOXES) == set(LOADERS)
    with pytest.raises(DataError, match=r"--data Coco: .* Did you mean 'coco'\? Give one of: 'scenes', 'coco', 'voc'"):
        load_detection_task(DetectionDataConfig(name="Coco"), seed=0)
    with pytest.raises(DataError, match=r"--data coco needs --data-dir DIR .*val2017\.zip"):
        load_detection_task(DetectionDataConfig(name="coco"), seed=0)
    with pytest.raises(DataError, match="there is no such folder"):
        coco_task(tmp_path / "nothing")


def test_too_few_images_for_a_batch_are_told(tmp_path: Path) -> None:
    config = coco_config(make_coco(tmp_path), batch_size=5)
    with pytest.raises(DataError, match=r"4 training images do not fill one batch of 5.*--batch-size"):
        make_loaders(load_detection_task(config, seed=0), config, seed=0)
