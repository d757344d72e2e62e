"""Hugging Face data sets from the disk: tables and image folders, columns found or named, errors for the rest."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from netaug_fx.errors import DataError
from netaug_fx.training.data import DataConfig, Task, load_task, make_loaders

GREYS = [10, 60, 110, 160, 210, 250]


def table(labels: list[Any], feature: Any = None, greys: list[int] | None = None) -> datasets.Dataset:
    greys = greys or GREYS[: len(labels)]
    columns = {"picture": [Image.new("L", (12, 9), grey) for grey in greys], "label": labels}
    features = datasets.Features(
        {"picture": datasets.Image(), "label": feature or datasets.ClassLabel(names=["cat", "dog"])}
    )
    return datasets.Dataset.from_dict(columns, features=features)


def saved_task(content: Any, folder: Path, **settings: object) -> Task:
    content.save_to_disk(str(folder / "saved"))
    named = {"name": f"hf:{folder / 'saved'}", "dir": str(folder / "cache"), "image_size": 8, **settings}
    return load_task(DataConfig.model_validate(named), seed=0)


def test_a_saved_set_keeps_its_parts_and_classes(tmp_path: Path) -> None:
    parts = {"train": table([0, 1, 1]), "test": table([0]), "validation": table([1, 0], greys=[30, 40])}
    task = saved_task(datasets.DatasetDict(parts), tmp_path)
    assert task.classes == ("cat", "dog")
    assert (task.train.labels.tolist(), task.val.labels.tolist()) == ([0, 1, 1], [1, 0])
    images = task.train.images([2, 0])
    assert images.shape == (2, 3, 8, 8)
    assert images.float().mean((1, 2, 3)).tolist() == [110, 10]
    assert task.val.images([1]).float().mean() == 40


def test_a_set_of_one_part_is_split(tmp_path: Path) -> None:
    task = saved_task(table([0, 0, 0, 1, 1, 1]), tmp_path, val_fraction=0.34)
    assert sorted(task.train.labels.tolist()) == [0, 0, 1, 1]
    assert sorted(task.val.labels.tolist()) == [0, 1]
    greys = [int(part.images([i]).float().mean()) for part in (task.train, task.val) for i in range(len(part))]
    assert sorted(greys) == GREYS


@pytest.mark.parametrize(("labels", "kind"), [(["owl", "ant", "owl"], "string"), ([7, 3, 7], "int32")])
def test_plain_values_are_numbered_in_their_order(tmp_path: Path, labels: list[Any], kind: str) -> None:
    feature = datasets.Value(kind)
    task = saved_task(datasets.DatasetDict(train=table(labels, feature), test=table(labels[:1], feature)), tmp_path)
    assert task.classes == tuple(str(value) for value in sorted(set(labels)))
    assert (task.train.labels.tolist(), task.val.labels.tolist()) == ([1, 0, 1], [1])


def test_a_folder_of_images_is_read(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name, grey in (("ant", 20), ("bee", 200)):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (grey, grey, grey)).save(tmp_path / "images" / part / name / f"{part}.png")
    settings = {"name": f"hf:{tmp_path / 'images'}", "dir": str(tmp_path / "cache"), "image_size": 8}
    task = load_task(DataConfig.model_validate(settings), seed=0)
    assert task.classes == ("ant", "bee")
    assert task.train.labels.tolist() == [0, 1]
    assert task.val.images([1]).float().mean() == 200
    assert (tmp_path / "cache").is_dir()


def test_columns_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    two = datasets.DatasetDict(train=table([0, 1, 1]), test=table([0, 1]))
    for part in two:
        fine = datasets.ClassLabel(names=["a", "b", "c"])
        two[part] = two[part].add_column("fine", [2, 0, 1][: len(two[part])]).cast_column("fine", fine)
    with pytest.raises(DataError, match=r"2 columns of type ClassLabel.*fine \(ClassLabel\).*Set data\.label_column"):
        saved_task(two, tmp_path)
    task = saved_task(two, tmp_path, label_column="fine")
    assert (task.classes, task.train.labels.tolist()) == (("a", "b", "c"), [2, 0, 1])
    with pytest.raises(DataError, match=r"no column 'image'.*picture \(Image\).*Set data\.image_column"):
        saved_task(two, tmp_path, label_column="fine", image_column="image")


def test_withheld_classes_and_a_single_class_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not among those of the training images: None|-1.*withheld"):
        saved_task(datasets.DatasetDict(train=table([0, 1]), test=table([-1])), tmp_path)
    with pytest.raises(DataError, match="holds one class"):
        saved_task(table([3, 3, 3], datasets.Value("int32")), tmp_path)


def test_an_image_that_is_truncated_is_named_by_its_row(tmp_path: Path) -> None:
    whole = table([0, 1, 0])
    cut = whole.cast_column("picture", datasets.Image(decode=False)).to_dict()
    cut["picture"][1]["bytes"] = cut["picture"][1]["bytes"][:40]
    broken = datasets.Dataset.from_dict(cut, features=whole.features)
    with pytest.raises(DataError, match="the image in row 1 cannot be read"):
        saved_task(datasets.DatasetDict(train=broken, test=whole), tmp_path)


def test_a_set_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be loaded.*hub"):
        load_task(DataConfig(name=f"hf:{tmp_path / 'saved'}"), seed=0)


def test_the_library_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'netaug_fx\[data\]'"):
        load_task(DataConfig(name="hf:some/set"), seed=0)


def test_rows_reach_worker_processes(tmp_path: Path) -> None:
    settings: dict[str, object] = {"crop_scale": [0.5, 1.0], "batch_size": 2}
    task = saved_task(datasets.DatasetDict(train=table([0, 1, 0, 1]), test=table([1, 0])), tmp_path, **settings)
    batches = []
    for workers in (0, 2):
        config = DataConfig.model_validate({**settings, "workers": workers})
        batches.append([images for images, _ in make_loaders(task, config, seed=0)[0]])
    assert all(torch.equal(here, there) for here, there in zip(*batches, strict=True))
