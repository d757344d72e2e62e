"""Shards: dealt out without overlap, exact in number, the same again after a stop, and errors that name the shard."""

import io
import json
import sys
import tarfile
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from netaug_fx.errors import DataError
from netaug_fx.training.data import DataConfig, Task, load_task, make_loaders, shard_index

SIZES = (7, 5, 6, 8, 6, 4)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def encoded(grey: int, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (10, 8), (grey, grey, grey)).save(stream, {"jpg": "jpeg"}.get(kind, kind))
    return stream.getvalue()


def make_shards(root: Path, sizes: tuple[int, ...] = SIZES, kind: str = "png", name: str = "train") -> str:
    """Image g has grey g and class g % 3, numbered over all shards."""
    root.mkdir(parents=True, exist_ok=True)
    grey = 0
    for number, size in enumerate(sizes):
        with tarfile.open(root / f"{name}-{number:06}.tar", "w") as tar:
            for _ in range(size):
                add(tar, f"sample{grey:04}.{kind}", encoded(grey, kind))
                add(tar, f"sample{grey:04}.cls", f"{grey % 3}\n".encode())
                grey += 1
    return f"wds:{root}/{name}-{{000000..{len(sizes) - 1:06}}}.tar"


def settings_for(pattern: str, val: str | None, **settings: object) -> DataConfig:
    plain = {"shift": 0.0, "zoom": 0.0, "flip": False, "image_size": 8, "batch_size": 4}
    return DataConfig.model_validate({"name": pattern, "val_shards": val, **plain, **settings})


def greys(task: Task, config: DataConfig, epoch: int = 0, start: int = 0) -> list[list[int]]:
    """The images of each step of an epoch, by their greys, after a look that the classes fit."""
    loader, order, _ = make_loaders(task, config, seed=0)
    order.epoch, order.start = epoch, start
    steps = []
    for images, labels in loader:
        pixels = (images * torch.tensor(task.std).view(1, 3, 1, 1) + torch.tensor(task.mean).view(1, 3, 1, 1)) * 255
        seen = pixels.mean((1, 2, 3)).round().int().tolist()
        assert [grey % 3 for grey in seen] == labels.tolist()
        steps.append(seen)
    return steps


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return settings_for(make_shards(tmp_path / "set"), make_shards(tmp_path / "held", (5,), name="val"))


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(config: DataConfig) -> None:
    task = load_task(config, seed=0)
    assert (len(task.train), len(task.val), task.classes) == (36, 5, ("0", "1", "2"))
    epochs = [list(chain.from_iterable(greys(task, config, epoch))) for epoch in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(36))
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_validation_images_are_read_by_index(config: DataConfig) -> None:
    task = load_task(config, seed=0)
    assert task.val.labels.tolist() == [0, 1, 2, 0, 1]
    assert task.val.images([3, 1]).float().mean((1, 2, 3)).tolist() == [3, 1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_goes_on_in_the_middle_of_an_epoch(config: DataConfig, workers: int) -> None:
    settings = config.model_copy(update={"workers": workers})
    task = load_task(settings, seed=0)
    whole = greys(task, settings, epoch=2)
    assert len(whole) == 9
    assert greys(task, settings, epoch=2, start=5) == whole[5:]


def test_lanes_share_no_shard_and_all_lanes_read_all(config: DataConfig) -> None:
    task = load_task(config, seed=0)
    for lanes in (2, 4):
        task.train.divide(lanes)
        parts = [task.train.lane_shards(epoch=1, lane=lane) for lane in range(lanes)]
        assert Counter(chain.from_iterable(parts)) == Counter(task.train.shards)
        images = [task.train.batch(step, 2, epoch=1)[2] for step in range(lanes)]
        assert len(images) == lanes
    assert task.train.lane_shards(epoch=2, lane=0) != task.train.lane_shards(epoch=1, lane=0)


def test_an_epoch_has_as_many_steps_as_asked_for(config: DataConfig) -> None:
    settings = config.model_copy(update={"train_samples": 100})
    steps = greys(load_task(settings, seed=0), settings)
    assert len(steps) == 25
    assert set(Counter(chain.from_iterable(steps)).values()) <= {2, 3}


def test_what_happens_to_an_image_follows_from_its_name_seed_and_epoch(config: DataConfig) -> None:
    found: list[dict[int, float]] = []
    for workers in (0, 2):
        settings = config.model_copy(update={"workers": workers, "brightness": 0.5})
        task = load_task(settings, seed=0)
        make_loaders(task, settings, seed=0)
        task.train.shards.sort(reverse=bool(workers))  # another order, other company
        found.append({})
        for number in range(task.train.lanes):
            source, names, _ = task.train.batch(number, 12, epoch=0)
            plain = source.images(names).float().mean((1, 2, 3)).round().int().tolist()
            changed = task.augmentation(source, names, seed=0, epoch=0).float().mean((1, 2, 3)).tolist()
            found[-1] |= dict(zip(plain, changed, strict=True))
    shared = set(found[0]) & set(found[1])
    assert len(shared) >= 3
    assert all(found[0][grey] == found[1][grey] for grey in shared)
    assert any(abs(found[0][grey] - grey) > 1 for grey in shared)


def test_without_a_pattern_for_validation_whole_shards_are_held_out(tmp_path: Path) -> None:
    config = settings_for(make_shards(tmp_path), None, val_fraction=0.34)
    task = load_task(config, seed=0)
    assert len(task.train) + len(task.val) == 36
    assert len(task.train.shards) == 4
    held_out = set(task.val.images(range(len(task.val))).float().mean((1, 2, 3)).int().tolist())
    assert not held_out & set(chain.from_iterable(greys(task, config)))
    with pytest.raises(DataError, match=r"one shard.*data\.val_shards"):
        load_task(config.model_copy(update={"name": f"wds:{tmp_path}/train-000000.tar"}), seed=0)


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_other_formats_and_stars_in_patterns_are_read(tmp_path: Path, kind: str) -> None:
    make_shards(tmp_path, kind=kind)
    config = settings_for(f"wds:{tmp_path}/train-*.tar", None, num_classes=3)
    task = load_task(config, seed=0)
    assert len(task.train) + len(task.val) == 36
    assert task.train.batch(0, 4, 0)[2].shape == (4,)


def test_classes_are_named_by_a_file_beside_the_shards(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "set" / "classes.txt").write_text("ant\nbee\nfly\n")
    assert load_task(config, seed=0).classes == ("ant", "bee", "fly")
    (tmp_path / "set" / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"classes\.txt has 2 lines, but there are 3 classes"):
        load_task(config, seed=0)


def test_shards_are_counted_once_and_again_only_if_changed(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_task(config, seed=0)
    (file,) = (tmp_path / "set").glob(".shards-*.json")
    assert [row["samples"] for row in json.loads(file.read_text()).values()] == list(SIZES)
    read: list[str] = []
    real = shard_index.entries

    def watched(shard: str) -> object:
        read.append(Path(shard).name)
        return real(shard)

    monkeypatch.setattr(shard_index, "entries", watched)
    assert len(load_task(config, seed=0).train) == 36
    assert read == ["val-000000.tar"]
    with tarfile.open(tmp_path / "set" / "train-000002.tar", "a") as tar:
        for number in range(40):
            add(tar, f"more{number}.png", encoded(1))
            add(tar, f"more{number}.cls", b"1")
    assert len(load_task(config, seed=0).train) == 76
    assert read == ["val-000000.tar", "val-000000.tar", "train-000002.tar"]
    file.write_text("not what was written")
    assert len(load_task(config, seed=0).train) == 76


def test_with_both_numbers_given_training_shards_are_not_counted(config: DataConfig, tmp_path: Path) -> None:
    task = load_task(config.model_copy(update={"train_samples": 8, "num_classes": 5}), seed=0)
    assert (len(task.train), len(task.classes)) == (8, 5)
    assert not list((tmp_path / "set").glob(".shards-*"))


def test_a_truncated_shard_is_named(config: DataConfig, tmp_path: Path) -> None:
    task = load_task(config, seed=0)
    shard = tmp_path / "set" / "train-000003.tar"
    shard.write_bytes(shard.read_bytes()[:1700])
    with pytest.raises(DataError, match=r"train-000003\.tar is no whole tar file"):
        load_task(config, seed=0)
    with pytest.raises(DataError, match=r"train-000003\.tar is no whole tar file \(.*Copy it again"):
        greys(task, config)


def test_missing_shards_and_bad_patterns_are_told(tmp_path: Path) -> None:
    pattern = make_shards(tmp_path)
    (tmp_path / "train-000004.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 6 shards.*train-000004\.tar.*KEY\.cls"):
        load_task(settings_for(pattern, None), seed=0)
    with pytest.raises(DataError, match="matches no file"):
        load_task(settings_for(f"wds:{tmp_path}/other-*.tar", None), seed=0)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.png": encoded(1)}, "sample 'a' has only one of image and class"),
        ({"a.png": encoded(1), "b.cls": b"1"}, "has only one of image and class"),
        ({"a.png": encoded(1), "a.cls": b"one"}, r"a\.cls holds 'one', expected the number"),
        ({"a.png": b"no image", "a.cls": b"1"}, "cannot be read"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    pattern = make_shards(tmp_path, (4, 4))
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    with pytest.raises(DataError, match=words):
        load_task(settings_for(pattern, f"{tmp_path}/val.tar"), seed=0)
    config = settings_for(f"wds:{tmp_path}/val.tar", f"{tmp_path}/train-000000.tar", train_samples=4, num_classes=3)
    with pytest.raises(DataError, match=rf"{words}|lacks its image or its class"):
        greys(load_task(config, seed=0), config)


def test_more_classes_than_were_said_and_too_few_shards_are_told(config: DataConfig) -> None:
    few = config.model_copy(update={"num_classes": 2, "train_samples": 36})
    with pytest.raises(DataError, match=r"is of class 2, but there are 2 classes.*data\.num_classes"):
        greys(load_task(few, seed=0), few)
    many = config.model_copy(update={"workers": 7})
    with pytest.raises(DataError, match=r"6 training shards.*7 workers.*data\.workers"):
        make_loaders(load_task(many, seed=0), many, seed=0)


def test_shards_elsewhere_need_their_numbers_and_local_validation(config: DataConfig, tmp_path: Path) -> None:
    local = (tmp_path / "set" / "train-000000.tar").as_posix()
    piped = config.model_copy(update={"name": f"wds:pipe:cat {local}"})
    with pytest.raises(DataError, match=r"not counted: set data\.train_samples and data\.num_classes"):
        load_task(piped, seed=0)
    told = piped.model_copy(update={"train_samples": 8, "num_classes": 3})
    assert set(chain.from_iterable(greys(load_task(told, seed=0), told))) <= set(range(7))
    with pytest.raises(DataError, match=r"must be local files.*data\.val_shards"):
        load_task(told.model_copy(update={"val_shards": f"pipe:cat {local}"}), seed=0)


def test_the_library_is_asked_for_where_it_is_missing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"pip install 'netaug_fx\[data\]'"):
        load_task(config, seed=0)


def test_shards_of_one_name_in_several_folders_are_counted_each(tmp_path: Path) -> None:
    for folder, sizes in (("a", (4, 5)), ("b", (6, 7))):
        make_shards(tmp_path / folder, sizes)
    shards = [str(tmp_path / folder / f"train-{number:06}.tar") for folder in "ab" for number in (0, 1)]
    for _ in range(2):  # the second time from the file beside them
        assert [count.samples for count in shard_index.counted(shards)] == [4, 5, 6, 7]
