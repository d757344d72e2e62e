"""Pascal VOC's format: coordinates from 1, difficult objects, the years' protocol, and broken files."""

from pathlib import Path

import pytest

from netaug_fx.errors import DataError
from netaug_fx.training.detection import DetectionDataConfig, DetectionTask, load_detection_task
from netaug_fx.training.detection.voc import CLASSES
from tests.netaug_fx.detection_sets import Object, make_voc, voc_xml

CAT: Object = ("cat", (1, 1, 30, 20), False)
DOG: Object = ("dog", (11, 6, 11, 10), True)


def voc_task(root: Path) -> DetectionTask:
    return load_detection_task(DetectionDataConfig(name="voc", dir=str(root), image_size=32), seed=0)


def names(task: DetectionTask) -> tuple[list[str], list[str]]:
    train, val = ([source.name(k) for k in range(len(source))] for source in (task.train, task.val))
    return train, val


def test_pixels_from_one_with_both_corners_become_corners_from_zero(tmp_path: Path) -> None:
    make_voc(tmp_path, "VOC2012", {"train": {"a": [CAT, DOG], "b": []}, "val": {"c": [CAT]}})
    task = voc_task(tmp_path)
    target = task.train.target(0)
    assert target["boxes"].tolist() == [[0, 0, 30, 20], [10, 5, 11, 10]]
    assert [task.classes[k] for k in target["labels"].tolist()] == ["cat", "dog"]
    assert target["ignore"].tolist() == [False, True]
    assert len(task.train.target(1)["boxes"]) == 0
    assert task.train.samples([0])[0][0].shape == (3, 20, 30)
    assert (len(task.classes), task.classes) == (20, tuple(sorted(CLASSES)))
    assert task.notes() == []


def test_both_years_train_and_the_test_part_of_2007_validates(tmp_path: Path) -> None:
    seven = {"trainval": {"000001": [CAT]}, "test": {"000002": [CAT, DOG]}, "train": {"000003": [CAT]}}
    twelve = {"trainval": {"2008_1": [CAT], "2008_2": []}, "val": {"2008_2": []}}
    make_voc(make_voc(tmp_path, "VOC2007", seven), "VOC2012", twelve)
    expected = (["000001.jpg", "2008_1.jpg", "2008_2.jpg"], ["000002.jpg"])
    assert names(voc_task(tmp_path)) == expected
    assert names(voc_task(tmp_path / "VOCdevkit")) == expected


def test_without_a_test_part_train_and_val_serve(tmp_path: Path) -> None:
    for year, prefix in (("VOC2007", "s"), ("VOC2012", "t")):
        lists = {"trainval": {f"{prefix}1": [CAT]}, "train": {f"{prefix}1": [CAT]}, "val": {f"{prefix}2": [CAT]}}
        make_voc(tmp_path, year, lists)
    assert names(voc_task(tmp_path)) == (["s1.jpg", "t1.jpg"], ["s2.jpg", "t2.jpg"])


def test_boxes_that_cannot_be_used_are_counted_with_an_example(tmp_path: Path) -> None:
    objects: list[Object] = [
        ("cat", (0, 1, 31, 20), False),
        ("cat", (31, 1, 40, 20), False),
        ("cat", (9, 9, 8, 12), False),
        ("cat", ("nan", 1, 5, 5), False),
        ("cat", ("", 1, 5, 5), False),
        ("", (1, 1, 5, 5), False),
        ("unicorn", (1, 1, 5, 5), False),
        ("dog", ("1.5", "1.5", "4.5", "4.5"), False),
    ]
    make_voc(tmp_path, "VOC2012", {"train": {"a": objects}, "val": {"c": [CAT]}})
    task = voc_task(tmp_path)
    assert task.train.target(0)["boxes"].tolist() == [[0, 0, 30, 20], [0.5, 0.5, 4.5, 4.5]]
    counts = {"clipped": 1, "outside": 1, "no_area": 1, "not_finite": 1, "malformed": 2, "unknown_class": 1}
    assert task.train.skipped.counts == counts
    assert "unicorn in a.xml" in task.train.skipped.examples["unknown_class"]
    assert "object without a name" not in task.train.skipped.examples["malformed"]
    assert len(task.notes()) == 6


def test_words_for_difficult_objects_are_understood_or_counted(tmp_path: Path) -> None:
    flags = ["0", "False", "no", "", "Unspecified", "1", "true", "perhaps"]
    make_voc(tmp_path, "VOC2012", {"train": {"a": [CAT] * len(flags)}, "val": {"c": [CAT]}})
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml"
    text = file.read_text()
    for flag in flags:
        text = text.replace("<difficult>0<", f"<difficult> {flag} <", 1)
    file.write_text(text)
    train = voc_task(tmp_path).train
    assert train.target(0)["ignore"].tolist() == [False] * 5 + [True] * 2
    assert train.skipped.counts == {"malformed": 1, "repeated_box": 6}
    assert train.skipped.examples["malformed"].endswith("difficult 'perhaps'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (voc_xml("a", [CAT])[:120], r"a\.xml is cut short or no XML: .*Unpack the archive"),
        ("no XML", r"a\.xml is cut short or no XML"),
        ("", r"a\.xml is cut short or no XML"),
        ("<annotation/>", r"a\.xml has no size of its image"),
        (voc_xml("a", [CAT]).replace(">30</width>", ">0</width>"), r"a\.xml has no size of its image, or none above"),
        (voc_xml("a", [CAT]).replace(">30</width>", ">inf</width>"), r"a\.xml has no size of its image"),
        (
            '<?xml version="1.0" encoding="none-such"?>' + voc_xml("a", [CAT]),
            r"no XML: .*none-such",
        ),
        ('<?xml version="1.0" encoding="utf-7"?>' + voc_xml("a", [CAT]), r"a\.xml is cut short or no XML"),
        (voc_xml("a", [CAT]).replace(">30</width>", ">31</width>"), r"a\.jpg has 30 x 20 pixels.*for 31 x 20"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, text: str, words: str) -> None:
    make_voc(tmp_path, "VOC2012", {"train": {"a": [CAT]}, "val": {"c": [CAT]}})
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        voc_task(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither VOC2007 nor VOC2012.*torchvision\.datasets\.VOCDetection"):
        voc_task(tmp_path)
    folder = make_voc(tmp_path, "VOC2012", {"train": {"a": [CAT]}, "val": {"c": [CAT]}}) / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"VOC2012/val: 1 of 1 annotated images are missing: \S*c\.jpg"):
        voc_task(tmp_path)
    (folder / "Annotations" / "c.xml").unlink()
    with pytest.raises(DataError, match=r"annotation \S*c\.xml cannot be read"):
        voc_task(tmp_path)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"list \S*val\.txt is empty"):
        voc_task(tmp_path)
    (folder / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"list \S*train\.txt cannot be read"):
        voc_task(tmp_path)


def test_lists_of_one_class_have_flags_behind_their_names(tmp_path: Path) -> None:
    make_voc(tmp_path, "VOC2012", {"train": {"a": [CAT]}, "val": {"c": [CAT]}})
    (tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "train.txt").write_text("a  1\nc -1\n")
    assert names(voc_task(tmp_path))[0] == ["a.jpg", "c.jpg"]
