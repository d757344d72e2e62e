"""Data sets: digits and image folders, their order, their changes, and what is wrong with bad ones."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from netaug_fx.errors import DataError
from netaug_fx.training.data import Augmentation, DataConfig, Task, load_task, make_loaders, pictures
from netaug_fx.training.data.loaders import loader_of
from netaug_fx.training.data.pictures import Files, Pictures, read_picture, square
from netaug_fx.training.data.split import stratified_split


def make_folder(root: Path, classes: dict[str, int], size: tuple[int, int] = (20, 12)) -> Path:
    for number, (name, images) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(images):
            Image.new("RGB", size, (40 * number, 10 * index, 0)).save(root / name / f"{index:02}.png")
    return root


def folder_task(root: Path, **settings: object) -> Task:
    return load_task(DataConfig.model_validate({"name": str(root), "image_size": 8, **settings}), seed=0)


def test_digits_are_split_evenly_and_keep_their_pixels() -> None:
    task = load_task(DataConfig(), seed=0)
    assert (len(task.train.labels) + len(task.val.labels), task.channels, task.image_size) == (1797, 1, 8)
    counts = Counter(task.val.labels.tolist())
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 2
    pixels = task.train.images(range(100))
    assert pixels.dtype == torch.uint8
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)


def test_digits_can_be_enlarged() -> None:
    assert load_task(DataConfig(image_size=16), seed=0).example().shape == (2, 1, 16, 16)


def test_a_split_has_every_class_on_both_sides_and_follows_its_seed() -> None:
    labels = [0] * 10 + [1] * 2 + [2]
    train, val = stratified_split(labels, 0.2, seed=1)
    assert sorted(train + val) == list(range(13))
    assert Counter(labels[i] for i in val) == {0: 2, 1: 1}
    assert stratified_split(labels, 0.2, seed=1) == (train, val)
    assert stratified_split(labels, 0.2, seed=2) != (train, val)


def test_a_folder_without_val_is_split(tmp_path: Path) -> None:
    task = folder_task(make_folder(tmp_path / "set", {"cat": 5, "dog": 5}))
    assert task.classes == ("cat", "dog")
    assert (len(task.train.labels), len(task.val.labels)) == (8, 2)
    assert task.example().shape == (2, 3, 8, 8)


def test_a_folder_with_val_is_taken_as_it_is(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"cat": 3, "dog": 4})
    make_folder(tmp_path / "val", {"dog": 2})
    task = folder_task(tmp_path)
    assert (len(task.train.labels), task.val.labels.tolist()) == (7, [1, 1])


def test_images_that_do_not_fit_into_memory_are_decoded_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    eager = folder_task(root).train.images([0, 3])
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    lazy = folder_task(root)
    assert torch.equal(lazy.train.images([0, 3]), eager)
    broken = next((root / "dog").iterdir())
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=broken.name):
        folder_task(root)


def test_an_image_is_made_square_rgb_and_upright(tmp_path: Path) -> None:
    file = tmp_path / "tall.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("L", (10, 30), 128).save(file, exif=exif)
    image = square(read_picture(file, file.name), 8)
    assert image.shape == (3, 8, 8)
    assert torch.allclose(image.float(), torch.tensor(128.0), atol=2)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "no class sub-folders"),
        ({"cat": 3}, "one class, 'cat'"),
        ({"cat": 3, "dog": 0}, "dog holds no image"),
        ({"cat": 1, "dog": 1}, "none can be held out"),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path, classes: dict[str, int], words: str) -> None:
    root = make_folder(tmp_path / "set", classes)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=words):
        folder_task(root)


@pytest.mark.parametrize("names", [("Train", "Val"), ("training", "val"), ("train", "Validation"), ("TEST", "cats")])
def test_parts_under_other_names_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    """A net learned to tell training images from validation images, to 69 %."""
    for name in names:
        make_folder(tmp_path / name, {"cat": 4, "dog": 4})
    with pytest.raises(DataError, match=r"looks like a part of the data set.*must be named train and val or"):
        folder_task(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert folder_task(make_folder(tmp_path, {"bus": 5, "test": 5})).classes == ("bus", "test")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such folder.*'digits'"):
        folder_task(tmp_path / "nowhere")


def test_val_classes_that_train_has_not_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"cat": 3, "dog": 3})
    make_folder(tmp_path / "val", {"cat": 1, "owl": 1})
    with pytest.raises(DataError, match="owl"):
        folder_task(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    root = make_folder(tmp_path / "set", {"cat": 4, "dog": 4}, size=(64, 64))
    broken = root / "dog" / "02.png"
    broken.write_bytes(broken.read_bytes()[:60] if content is None else content)
    with pytest.raises(DataError, match=r"dog/02\.png cannot be read.*Repair"):
        folder_task(root)


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitems__(self, indices: list[int]) -> Any:
        raise DataError("image a.png cannot be read:\ntruncated. Repair it.")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_reads_as_without_one(workers: int) -> None:
    with pytest.raises(DataError) as raised:
        next(iter(loader_of(Broken(), workers)))
    assert str(raised.value) == "image a.png cannot be read:\ntruncated. Repair it."


@pytest.mark.parametrize("name", ["digits", "glyphs", "{folder}"])
def test_a_folder_that_would_not_be_read_is_no_folder_to_give(tmp_path: Path, name: str) -> None:
    config = DataConfig(name=name.format(folder=tmp_path), dir="elsewhere", train_samples=9, val_samples=9)
    with pytest.raises(DataError, match=r"--data-dir elsewhere would not be read.*Give --data elsewhere"):
        load_task(config, seed=0)


@pytest.mark.parametrize(
    ("name", "settings", "readers"),
    [
        ("digits", {"train_samples": 500}, "glyphs and wds:"),
        ("digits", {"glyphs": {"noise": 0.5}}, "glyphs"),
        ("imagefolder", {"num_classes": 1000}, "wds:"),
        ("hf:some/set", {"val_shards": "b.tar"}, "wds:"),
        ("wds:a.tar", {"label_column": "fine_label"}, "hf:"),
        ("{folder}", {"fresh": False}, "glyphs"),
    ],
)
def test_a_setting_that_the_set_does_not_read_is_refused(
    tmp_path: Path, name: str, settings: dict[str, object], readers: str
) -> None:
    config = DataConfig.model_validate({"name": name.format(folder=tmp_path), **settings})
    (setting,) = settings
    with pytest.raises(DataError, match=rf"^data\.{setting} would not be read: it is for --data {readers} alone, and"):
        load_task(config, seed=0)


def test_too_few_images_for_a_batch_are_told(tmp_path: Path) -> None:
    task = folder_task(make_folder(tmp_path / "set", {"cat": 4, "dog": 4}))
    with pytest.raises(DataError, match=r"do not fill one batch of 64.*--batch-size"):
        make_loaders(task, DataConfig(), seed=0)


def test_order_and_changes_follow_from_seed_epoch_and_place_alone() -> None:
    config = DataConfig()
    task = load_task(config, seed=0)
    loader, order, _ = make_loaders(task, config, seed=5)
    order.epoch = 3
    whole = [(images.clone(), labels) for images, labels in loader]
    assert len(whole) == len(task.train.labels) // config.batch_size
    torch.rand(7)  # the global generator has no part in it
    loader, order, _ = make_loaders(task, config, seed=5)
    order.epoch, order.start = 3, 20
    rest = list(loader)
    assert len(rest) == len(whole) - 20
    for (images, labels), (again, labels_again) in zip(whole[20:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    order.epoch, order.start = 4, 0
    assert not torch.equal(next(iter(loader))[1], whole[0][1])


def test_loading_draws_nothing_from_the_global_generator() -> None:
    config = DataConfig()
    loader, _, val = make_loaders(load_task(config, seed=0), config, seed=0)
    before = torch.get_rng_state()
    assert sum(len(labels) for _, labels in val) + sum(len(labels) for _, labels in loader) > 1700
    assert torch.equal(torch.get_rng_state(), before)


def test_an_augmentation_of_nothing_leaves_images_alone_and_flip_mirrors() -> None:
    images = torch.rand(32, 1, 8, 8)
    draw = torch.rand(32, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Augmentation(0, 0, False).move(images, draw), images)
    flipped = Augmentation(0, 0, True).move(images, draw)
    same = torch.isclose(flipped, images, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(flipped, images.flip(-1), atol=1e-5).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 0 < int(mirrored.sum()) < 32
    moved = Augmentation(0.1, 0.1, False).move(images, draw)
    assert moved.shape == images.shape
    assert not torch.allclose(moved, images, atol=1e-3)


def test_a_set_keeps_its_labels_beside_its_files(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 2})
    files = sorted((tmp_path / "cat").iterdir())
    images = Pictures(Files(files), [1, 0], 8)
    assert images.labels.tolist() == [1, 0]
    assert images.images([1]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_a_folder_to_validate_on_goes_by_several_names(tmp_path: Path, name: str) -> None:
    for part, count in (("train", 4), (name, 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index, 9, 9)).save(tmp_path / part / label / f"{index}.png")
    task = load_task(DataConfig(name=str(tmp_path), image_size=8), seed=0)
    assert (len(task.train), len(task.val)) == (8, 4)
