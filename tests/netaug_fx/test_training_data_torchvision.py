"""Sets in the layouts of torchvision and ImageNet, made small: images, classes, and errors for what is missing."""

import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from netaug_fx.errors import DataError
from netaug_fx.training.data import DataConfig, Task, load_task


def named_task(name: str, root: Path, **settings: object) -> Task:
    return load_task(DataConfig.model_validate({"name": name, "dir": str(root), "image_size": 8, **settings}), seed=0)


def draw(file: Path, grey: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (14, 10), (grey, grey, grey)).save(file)


def grey_of(task: Task, part: str, index: int) -> int:
    source = task.train if part == "train" else task.val
    return int(source.images([index]).float().mean().round())


def pickled(file: Path, content: object) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five training batches of four images and one for testing; their checksums stand in for the published ones."""
    folder = root / "cifar-10-batches-py"
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    sums = []
    for number, name in enumerate(names):
        data = np.full((4, 3072), 40 * number, np.uint8)
        data[:, 0] = 255  # red of the upper left pixel
        sums.append([name, pickled(folder / name, {"data": data, "labels": [0, 1, 2, number]})])
    label_names = [f"class {n}" for n in range(10)]
    meta = pickled(folder / "batches.meta", {"label_names": label_names})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": meta})


def make_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-100-python"
    for name, count in (("train", 6), ("test", 3)):
        content = {
            "data": np.zeros((count, 3072), np.uint8),
            "fine_labels": list(range(count)),
            "coarse_labels": [0] * count,
        }
        monkeypatch.setattr(datasets.CIFAR100, f"{name}_list", [[name, pickled(folder / name, content)]])
    meta = pickled(folder / "meta", {"fine_label_names": [f"fine {n}" for n in range(100)]})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": meta})


def make_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for number in range(1, 7):
        draw(folder / "jpg" / f"image_{number:05}.jpg", 30 * number)
    savemat(folder / "imagelabels.mat", {"labels": [[5, 1, 5, 102, 1, 2]]})
    savemat(folder / "setid.mat", {"trnid": [[3, 1]], "valid": [[2, 4]], "tstid": [[6, 5]]})
    known = dict(datasets.Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        known[key] = (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", known)


def make_food(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "train": {"pizza": ["pizza/11", "pizza/12"], "apple_pie": ["apple_pie/21"]},
        "test": {"pizza": ["pizza/31"]},
    }
    (root / "food-101" / "meta").mkdir(parents=True)
    for part, listed in parts.items():
        listed = {"apple_pie": [], **listed}
        (root / "food-101" / "meta" / f"{part}.json").write_text(json.dumps(listed))
        for image in (image for images in listed.values() for image in images):
            draw(root / "food-101" / "images" / f"{image}.jpg", 5 * int(image[-2:]))


def make_cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    fields = [("fname", object), ("class", object)]
    parts = {
        folder / "devkit" / "cars_train_annos.mat": [("00001.jpg", 2), ("00002.jpg", 1)],
        folder / "cars_test_annos_withlabels.mat": [("00001.jpg", 2), ("00002.jpg", 2)],
    }
    for file, rows in parts.items():
        savemat(file, {"annotations": np.array([rows], dtype=fields)})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([["AM General Hummer", "Acura RL"]], object)})
    for part, grey in (("cars_train", 20), ("cars_test", 100)):
        for number in (1, 2):
            draw(folder / part / f"{number:05}.jpg", grey * number)


def make_pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    rows = {
        "trainval": ["Abyssinian_1 1 1 1", "basset_hound_7 2 2 1"],
        "test": ["basset_hound_9 2 2 1", "Abyssinian_4 1 1 1"],
    }
    for part, lines in rows.items():
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            image = line.split()[0]
            draw(folder / "images" / f"{image}.jpg", 20 * int(image[-1]))


MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "flowers102": make_flowers,
    "food101": make_food,
    "stanford_cars": make_cars,
    "oxford_pets": make_pets,
}


def test_cifar10_has_its_images_classes_and_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar10(tmp_path, monkeypatch)
    task = named_task("cifar10", tmp_path, image_size=None)
    assert (len(task.train), len(task.val), task.image_size) == (20, 4, 32)
    assert task.train.labels.tolist()[:8] == [0, 1, 2, 0, 0, 1, 2, 1]
    assert task.val.labels.tolist() == [0, 1, 2, 5]
    assert task.classes[3] == "class 3"
    assert task.train.images([19])[0, :, 0, :2].tolist() == [[255, 160], [160, 160], [160, 160]]
    assert task.mean[0] == pytest.approx(0.4914)
    assert named_task("cifar10", tmp_path, image_size=48).example().shape == (2, 3, 48, 48)


def test_cifar100_takes_the_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar100(tmp_path, monkeypatch)
    task = named_task("cifar100", tmp_path)
    assert task.train.labels.tolist() == list(range(6))
    assert (task.val.labels.tolist(), len(task.classes), task.classes[99]) == ([0, 1, 2], 100, "fine 99")


def test_flowers_train_on_two_parts_and_validate_on_the_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_flowers(tmp_path, monkeypatch)
    task = named_task("flowers102", tmp_path)
    assert task.train.labels.tolist() == [4, 4, 0, 101]
    assert task.val.labels.tolist() == [1, 0]
    assert (len(task.classes), task.classes[0]) == (102, "pink primrose")
    assert [grey_of(task, "train", index) for index in range(4)] == [90, 30, 60, 120]


def test_food_is_read_by_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_food(tmp_path, monkeypatch)
    task = named_task("food101", tmp_path)
    assert task.classes == ("apple_pie", "pizza")
    found = {(int(label), grey_of(task, "train", index)) for index, label in enumerate(task.train.labels)}
    assert found == {(1, 55), (1, 60), (0, 105)}
    assert (task.val.labels.tolist(), grey_of(task, "val", 0)) == ([1], 155)


def test_cars_are_numbered_from_one_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cars(tmp_path, monkeypatch)
    task = named_task("stanford_cars", tmp_path)
    assert task.classes == ("AM General Hummer", "Acura RL")
    assert (task.train.labels.tolist(), task.val.labels.tolist()) == ([1, 0], [1, 1])
    assert [grey_of(task, "val", index) for index in range(2)] == [100, 200]


def test_pets_are_named_after_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pets(tmp_path, monkeypatch)
    task = named_task("oxford_pets", tmp_path)
    assert task.classes == ("Abyssinian", "Basset Hound")
    assert (task.train.labels.tolist(), task.val.labels.tolist()) == ([0, 1], [1, 0])
    assert [grey_of(task, "train", index) for index in range(2)] == [20, 140]


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar100", "cifar-100-python/meta"),
        ("flowers102", "flowers-102/setid.mat"),
        ("food101", "food-101/meta/test.json"),
        ("stanford_cars", "stanford_cars/devkit/cars_meta.mat"),
        ("oxford_pets", "oxford-iiit-pet/annotations/trainval.txt"),
    ],
)
def test_a_file_that_is_missing_or_truncated_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, gone: str
) -> None:
    MAKERS[name](tmp_path, monkeypatch)
    content = (tmp_path / gone).read_bytes()
    (tmp_path / gone).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"truncated or changed.*Expected DIR/"):
        named_task(name, tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=rf"has no {gone}.*Expected DIR/.*(download=True|archives)"):
        named_task(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("flowers102", "flowers-102/jpg/image_00004.jpg"),
        ("food101", "food-101/images/pizza/12.jpg"),
        ("stanford_cars", "stanford_cars/cars_test/00002.jpg"),
        ("oxford_pets", "oxford-iiit-pet/images/basset_hound_9.jpg"),
    ],
)
def test_an_image_that_is_missing_or_truncated_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, image: str
) -> None:
    MAKERS[name](tmp_path, monkeypatch)
    (tmp_path / image).write_bytes((tmp_path / image).read_bytes()[:300])
    with pytest.raises(DataError, match=f"{image} cannot be read"):
        named_task(name, tmp_path)
    (tmp_path / image).unlink()
    with pytest.raises(DataError, match=f"{image} cannot be read"):
        named_task(name, tmp_path)


@pytest.mark.parametrize("name", [*MAKERS, "imagefolder", "imagenet", "imagenet21k_p"])
def test_a_set_without_its_folder_says_what_is_expected(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"needs --data-dir DIR.*Expected"):
        load_task(DataConfig(name=name), seed=0)
    with pytest.raises(DataError, match=r"there is no such folder.*Expected"):
        named_task(name, tmp_path / "nowhere")


def test_torchvision_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pets(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"pip install 'netaug_fx\[data\]'"):
        named_task("oxford_pets", tmp_path)


def test_imagenet_is_two_folders_of_wnids(tmp_path: Path) -> None:
    for part, grey in (("train", 50), ("val", 90)):
        for wnid in ("n01440764", "n01443537"):
            draw(tmp_path / part / wnid / f"{part}_1.JPEG", grey)
    task = named_task("imagenet", tmp_path)
    assert task.classes == ("n01440764", "n01443537")
    assert (task.train.labels.tolist(), grey_of(task, "val", 1)) == ([0, 1], 90)
    words = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",), "n0": ("more",)}
    torch.save((words, ["n01440764"]), tmp_path / "meta.bin")
    assert named_task("imagenet", tmp_path).classes == ("tench", "goldfish")
    (tmp_path / "meta.bin").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"meta\.bin.*Delete it"):
        named_task("imagenet", tmp_path)


def test_imagenet_without_val_is_not_split_but_told(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "n01440764" / "1.JPEG", 10)
    with pytest.raises(DataError, match=r"has no val \(found: train\).*image-net\.org"):
        named_task("imagenet", tmp_path)
    draw(tmp_path / "train" / "n01443537" / "1.JPEG", 10)
    draw(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 10)
    with pytest.raises(DataError, match="val holds no image in a class sub-folder"):
        named_task("imagenet", tmp_path)


def test_imagenet21k_p_has_folders_of_its_own_names(tmp_path: Path) -> None:
    for wnid in ("n00004475", "n00005787"):
        draw(tmp_path / "imagenet21k_train" / wnid / "1.JPEG", 10)
        draw(tmp_path / "imagenet21k_train" / wnid / "2.JPEG", 10)
        draw(tmp_path / "imagenet21k_val" / wnid / "3.JPEG", 10)
    task = named_task("imagenet21k_p", tmp_path)
    assert (len(task.train), task.val.labels.tolist(), len(task.classes)) == (4, [0, 1], 2)
    with pytest.raises(DataError, match="has no train, no val"):
        named_task("imagenet", tmp_path)
