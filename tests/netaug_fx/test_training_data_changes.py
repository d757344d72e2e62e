"""Changes to images follow from (seed, epoch, index) alone; names lead to sets; processes and workers share none."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from PIL import Image
from torch import Tensor

from netaug_fx.errors import DataError, InputError
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.data import Augmentation, DataConfig, load_task, make_loaders, own_side
from netaug_fx.training.data.pictures import Files, square
from netaug_fx.training.data.sources import LOADERS
from netaug_fx.training.data.transforms import CropAndColour, sampling_grid
from tests.netaug_fx.test_training_data_shards import make_shards, settings_for

PAPER = {"crop_scale": [0.08, 1.0], "brightness": 32 / 255, "saturation": 0.5, "val_crop": 0.875}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of nine images, each a gradient of its own."""
    root = tmp_path_factory.mktemp("photographs")
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for index in range(9):
            line = torch.linspace(0, 200 + index, 40).to(torch.uint8).expand(30, 40)
            pixels = torch.stack([line, line.flip(1), torch.full_like(line, 90 * label + index)], -1)
            Image.fromarray(pixels.numpy()).save(root / name / f"{index}.png")
    return root


def config_for(root: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate(
        {"name": "imagefolder", "dir": str(root), "image_size": 16, "batch_size": 4, **settings}
    )


def epoch_of(config: DataConfig, seed: int = 0, epoch: int = 0, start: int = 0) -> list[Tensor]:
    loader, order, _ = make_loaders(load_task(config, seed=0), config, seed)
    order.epoch, order.start = epoch, start
    return [images for images, _ in loader]


@pytest.mark.parametrize("settings", [{}, PAPER])
def test_an_image_is_changed_alike_in_any_batch_and_worker(photographs: Path, settings: dict[str, Any]) -> None:
    config = config_for(photographs, **settings)
    task = load_task(config, seed=0)
    together = task.augmentation(task.train, [3, 0, 5, 9], seed=1, epoch=2)
    alone = [task.augmentation(task.train, [index], seed=1, epoch=2) for index in (3, 0, 5, 9)]
    assert together.shape == (4, 3, 16, 16)
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, task.augmentation(task.train, [3, 0, 5, 9], seed=1, epoch=3))
    assert not torch.equal(together, task.augmentation(task.train, [3, 0, 5, 9], seed=2, epoch=2))
    here = epoch_of(config, epoch=1)
    there = epoch_of(config.model_copy(update={"workers": 2}), epoch=1)
    assert all(torch.equal(*pair) for pair in zip(here, there, strict=True))
    rest = epoch_of(config.model_copy(update={"workers": 2}), epoch=1, start=2)
    assert all(torch.equal(*pair) for pair in zip(here[2:], rest, strict=True))


def test_the_papers_changes_draw_nothing_from_the_global_generator(photographs: Path) -> None:
    config = config_for(photographs, **PAPER)
    before = torch.get_rng_state()
    assert len(epoch_of(config)) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_crops_flips_and_colours_do_what_they_are_called() -> None:
    class Ramp:
        def picture(self, index: int, epoch: int = 0) -> Tensor:
            line = torch.linspace(0, 255, 64).to(torch.uint8).expand(64, 64)
            return torch.stack([line, line // 2, line // 4])

        def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
            raise AssertionError("crops are cut from images at their own size")

    def changed(*, scale: Any = None, flip: bool = False, brightness: float = 0.0, saturation: float = 0.0) -> Tensor:
        return CropAndColour(16, scale, flip, brightness, saturation)(Ramp(), range(40), seed=0, epoch=0).float()

    plain = changed()
    assert (plain == plain[0]).all()
    width = (changed(scale=(0.1, 0.5))[:, 0, 8, -1] - changed(scale=(0.1, 0.5))[:, 0, 8, 0]) / 255
    assert 0.15 < float(width.min()) < float(width.max()) < 0.95
    mirrored = (changed(flip=True)[:, 0, 8, 0] > 128).sum()
    assert 10 < int(mirrored) < 30
    factor = changed(brightness=0.3)[:, 1].mean((1, 2)) / plain[:, 1].mean((1, 2))
    assert 0.69 < float(factor.min()) < 0.8 < 1.2 < float(factor.max()) < 1.31
    grey = [images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)) for images in (changed(saturation=0.5), plain)]
    assert float((grey[0] / grey[1]).min()) < 0.7
    assert float((grey[0] / grey[1]).max()) > 1.2


def test_grey_squares_can_be_cropped_too() -> None:
    config = DataConfig.model_validate(
        {"name": "glyphs", "train_samples": 100, "val_samples": 9, "crop_scale": [0.5, 1]}
    )
    assert epoch_of(config)[0].shape == (64, 1, 28, 28)


def test_validation_images_are_the_middle_of_a_larger_square() -> None:
    picture = Image.new("RGB", (64, 64), (0, 0, 0))
    picture.paste((255, 255, 255), (8, 8, 56, 56))  # the frame is an eighth of the side
    assert float(square(picture, 32).float().mean()) == pytest.approx(255 * 0.75**2, rel=0.02)
    assert int(square(picture, 22, val_crop=22 / 32).min()) == 255


def test_the_grid_is_torchs_own_and_the_same_in_any_batch() -> None:
    affine = torch.randn(5, 2, 3)
    ours = sampling_grid(affine, 7)
    theirs = torch.nn.functional.affine_grid(affine, [5, 1, 7, 7], align_corners=False)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(ours[2:3], sampling_grid(affine[2:3], 7))


def test_torchvision_is_asked_for_where_it_is_missing(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(DataError, match=r"data\.crop_scale.*pip install 'netaug_fx\[data\]'.*data\.shift"):
        load_task(config_for(photographs, **PAPER), seed=0)
    assert isinstance(load_task(config_for(photographs), seed=0).augmentation, Augmentation)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop_scale": [0.5, 0.1]}, "data.crop_scale is two parts of the area"),
        ({"crop_scale": [0.0, 1.0]}, "data.crop_scale is two parts of the area"),
        ({"brightness": 0.1, "zoom": 0.2}, "data.shift and data.zoom do not go with"),
        ({"label": "font"}, "data.label"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(TrainConfig, None, {f"data.{name}": value for name, value in settings.items()})
    assert words in str(caught.value)


def test_a_name_leads_to_its_set_and_a_wrong_one_to_those_alike(photographs: Path) -> None:
    by_name = load_task(config_for(photographs), seed=0)
    by_path = load_task(config_for(photographs, name=str(photographs), dir=None), seed=0)
    assert by_name.classes == by_path.classes == ("cat", "dog")
    assert torch.equal(by_name.train.images([0, 5]), by_path.train.images([0, 5]))
    with pytest.raises(DataError, match=r"Did you mean 'flowers102'\?.*'wds:\.\.\.'"):
        load_task(DataConfig(name="flower102"), seed=0)
    with pytest.raises(DataError, match="Did you mean 'stanford_cars'"):
        load_task(DataConfig(name="Stanford-Cars"), seed=0)


def test_only_small_squares_have_a_size_of_their_own() -> None:
    sides = {name: own_side(name) for name in LOADERS}
    assert {name for name, side in sides.items() if side} == {"digits", "glyphs", "cifar10", "cifar100"}
    assert sides["glyphs"] == 28


def test_file_names_are_kept_whole(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.png", "ü/ä b.jpg", "c")]
    files = Files(names)
    assert [str(files.path(index)) for index in range(3)] == names
    assert str(files.path(-1)) == names[2]
    assert [str(files.select([2, 0]).path(index)) for index in range(2)] == [names[2], names[0]]
    with pytest.raises(IndexError):
        files.path(3)


def _images_seen(rank: int, folder: str, settings: list[dict[str, Any]]) -> None:
    """One of two processes: saves the batches that it gets of each set, in two workers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    PartialState(cpu=True)
    batches = []
    for setting in settings:
        config = DataConfig.model_validate(setting)
        loader, order, _ = make_loaders(load_task(config, seed=0), config, seed=0)
        order.epoch = 1
        shared = prepare_data_loader(loader, num_processes=2, process_index=rank)
        batches.append([images for images, _ in shared])
    torch.save(batches, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_two_workers_share_no_image(tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "set", (8, 8, 8, 8))
    shards = settings_for(pattern, make_shards(tmp_path / "held", (4,), name="val"), workers=2)
    glyphs = {"name": "glyphs", "train_samples": 128, "val_samples": 4, "batch_size": 16, "workers": 2}
    arguments = (str(tmp_path), [glyphs, shards.model_dump()])
    mp.start_processes(_images_seen, arguments, nprocs=2, start_method="fork")  # spawned ones would import for seconds
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for number, images in ((0, 128), (1, 32)):
        assert len(first[number]) == len(second[number])
        seen = [image.numpy().tobytes() for batch in first[number] + second[number] for image in batch]
        assert len(seen) == len(set(seen)) == images
    alone = epoch_of(DataConfig.model_validate(glyphs), epoch=1)
    assert all(torch.equal(*pair) for pair in zip(alone[::2], first[0], strict=True))
    assert all(torch.equal(*pair) for pair in zip(alone[1::2], second[0], strict=True))
