"""Glyphs: the same by seed and index in any batch, balanced, new in each epoch, and told apart by class."""

from collections import Counter

import pytest
import torch

from netaug_fx.errors import DataError
from netaug_fx.training.data import DataConfig, GlyphConfig, glyph_batch, glyphs, load_task, make_loaders
from netaug_fx.training.data.counters import key_of, normal, uniform
from netaug_fx.training.data.glyphs import CHARACTERS, FONTS, ROUND, class_names, glyph_labels


def glyph_task(seed: int = 0, **settings: object) -> glyphs.Task:
    small = {"name": "glyphs", "train_samples": 200, "val_samples": 130, **settings}
    return load_task(DataConfig.model_validate(small), seed)


def test_an_image_follows_from_seed_and_index_in_any_batch() -> None:
    together, labels = glyph_batch(range(50, 90), seed=3)
    assert together.shape == (40, 1, 28, 28)
    assert together.dtype == torch.uint8
    alone = torch.cat([glyph_batch([index], seed=3)[0] for index in range(50, 90)])
    assert torch.equal(together, alone)
    backwards, backward_labels = glyph_batch(list(range(89, 49, -1)), seed=3)
    assert torch.equal(together, backwards.flip(0))
    assert torch.equal(labels, backward_labels.flip(0))
    assert (glyph_batch(range(50, 90), seed=4)[0] != together).flatten(1).any(1).all()


def test_there_is_no_last_index() -> None:
    images, labels = glyph_batch([0, 10**12, 2**40 + 1], seed=0)
    assert len({image.numpy().tobytes() for image in images}) == 3
    assert labels.tolist() == [0, 10**12 % 62, (2**40 + 1) % 62]


def test_each_row_has_every_character_and_each_round_every_character_of_every_font() -> None:
    assert Counter(glyph_labels(range(62 * 3)).tolist()) == dict.fromkeys(range(62), 3)
    fine = glyph_labels(range(ROUND, 2 * ROUND), "character+font")
    assert sorted(fine.tolist()) == list(range(len(class_names("character+font"))))
    assert torch.equal(fine // len(FONTS), glyph_labels(range(ROUND, 2 * ROUND)))
    assert len(set((glyph_labels(range(62), "character+font") % len(FONTS)).tolist())) > 10


def test_characters_differ_within_every_font_and_fonts_within_every_character() -> None:
    drawings = glyphs.drawings(28, torch.device("cpu")).view(len(CHARACTERS), len(FONTS), -1)
    assert len({drawing.numpy().tobytes() for drawing in drawings.flatten(0, 1)}) == ROUND
    ink = drawings.float().mean(-1)
    assert float(ink.min()) > 2
    assert float(ink.max()) < 90


def test_without_variation_a_glyph_is_its_drawing() -> None:
    still = GlyphConfig(rotation=0, shift=0, scale=0, contrast=1, noise=0)
    first, second = (glyph_batch(range(124), seed, style=still)[0] for seed in (0, 1))
    assert torch.equal(first, second)
    assert int(first[:, :, 0].max()) == 0
    assert int(first.max()) == 255


def test_variation_grows_with_its_settings() -> None:
    still = {"rotation": 0, "shift": 0, "scale": 0, "contrast": 1, "noise": 0}
    plain = glyph_batch(range(62), 0, style=GlyphConfig.model_validate(still))[0].float()
    for name, weak, strong in [("rotation", 5, 40), ("shift", 0.02, 0.2), ("scale", 0.05, 0.6), ("noise", 0.05, 0.5)]:
        changes = [
            float((glyph_batch(range(62), 0, style=GlyphConfig(**{**still, name: value}))[0] - plain).abs().mean())
            for value in (weak, strong)
        ]
        assert 0 < changes[0] < changes[1], name
    greatest = glyph_batch(range(62), 0, style=GlyphConfig(**{**still, "contrast": 0.2}))[0].float().flatten(1)
    assert float((greatest.amax(1) - greatest.amin(1)).min()) < 128


def test_a_training_set_is_new_in_each_epoch_under_the_same_labels() -> None:
    task = glyph_task(batch_size=50)
    loader, order, _ = make_loaders(task, DataConfig(batch_size=50), seed=0)
    epochs = []
    for order.epoch in (0, 1):
        epochs += [torch.cat([images for images, _ in loader])]
    assert epochs[0].shape == (200, 1, 28, 28)
    seen = {image.numpy().tobytes() for images in epochs for image in images}
    assert len(seen) == 400
    images = task.train.images(range(200), epoch=7)
    expected = glyph_batch(range(7 * ROUND, 7 * ROUND + 200), seed=0)
    assert torch.equal(images, expected[0])
    assert torch.equal(task.train.labels, expected[1])


def test_a_set_that_is_not_fresh_repeats_itself() -> None:
    task = glyph_task(fresh=False)
    assert torch.equal(task.train.images(range(9), epoch=0), task.train.images(range(9), epoch=5))
    assert torch.equal(task.train.images(range(9)), glyph_task().train.images(range(9), epoch=0))


def test_validation_images_are_fixed_and_never_trained_on() -> None:
    first, second = glyph_task(seed=0), glyph_task(seed=1)
    assert torch.equal(first.val.images(range(130)), second.val.images(range(130)))
    assert not torch.equal(first.train.images(range(20)), second.train.images(range(20)))
    trained = {image.numpy().tobytes() for task in (first, second) for image in task.train.images(range(200))}
    assert not trained & {image.numpy().tobytes() for image in first.val.images(range(130))}


def test_images_too_many_for_memory_are_rendered_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = glyph_task(fresh=False)
    monkeypatch.setattr(glyphs, "IN_MEMORY_BYTES", 0)
    rendered = glyph_task(fresh=False)
    assert isinstance(rendered.val, glyphs.Glyphs)
    assert torch.equal(rendered.val.images([5, 2]), held.val.images([5, 2]))
    assert torch.equal(rendered.train.images([5, 2]), held.train.images([5, 2]))


def test_fonts_count_as_classes_when_asked_for_and_the_size_is_free() -> None:
    task = glyph_task(label="character+font", image_size=14)
    assert len(task.classes) == 62 * 21
    assert task.classes[int(task.train.labels[3])].startswith("3 ")
    assert task.example().shape == (2, 1, 14, 14)


def test_pixels_are_normalised_by_constants_of_the_set() -> None:
    images = glyph_task(train_samples=1302).train.images(range(1302), epoch=3).float() / 255
    assert float(images.mean()) == pytest.approx(glyphs.MEAN, abs=0.01)
    assert float(images.std()) == pytest.approx(glyphs.STD, abs=0.01)


def test_a_missing_font_is_explained() -> None:
    with pytest.raises(DataError, match=r"nowhere\.ttf cannot be read.*install matplotlib"):
        glyphs._font("nowhere", 20)


def test_counted_random_numbers_are_spread_evenly_and_follow_from_key_index_and_place() -> None:
    indices = torch.arange(20_000)
    numbers = uniform(key_of(1, 2), indices, 3)
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1
    assert torch.allclose(numbers.mean(0), torch.tensor(0.5), atol=0.01)
    assert torch.allclose(torch.corrcoef(numbers.T), torch.eye(3), atol=0.03)
    assert torch.equal(uniform(key_of(1, 2), indices[7:9], 2), numbers[7:9, :2])
    assert not torch.equal(uniform(key_of(2, 1), indices, 3), numbers)
    gaussian = normal(key_of(1), indices, 3)
    assert torch.allclose(gaussian.mean(0), torch.tensor(0.0), atol=0.03)
    assert torch.allclose(gaussian.std(0), torch.tensor(1.0), atol=0.02)
    assert torch.allclose(torch.corrcoef(gaussian.T), torch.eye(3), atol=0.03)
    assert key_of(-1) != key_of(1)
    assert 0 <= key_of(-5, 2**70) < 2**63
