"""Glyph scenes: one to eight characters with their boxes on an uneven, noisy ground, without end and offline.

The drawings are those of glyphs (`netaug_fx.training.data.glyphs`). Each is turned and scaled by one resampling into a
patch, its box is read off the patch's ink, and it is then put to a place in whole pixels, so that boxes are tight and
exact. Scenes are drawn at one size, and resized to what a net takes: a scene is the same at each resolution. Index i of
a seed is always the same scene, whatever is rendered beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.training.data.counters import key_of, normal, uniform
from netaug_fx.training.data.glyphs import CHARACTERS, EM, FONTS, drawings
from netaug_fx.training.data.transforms import sampling_grid
from netaug_fx.training.detection.annotations import Target, make_target
from netaug_fx.training.detection.data_config import SceneConfig

Array = NDArray[Any]

# What the random numbers of a scene are for; each has a key of its own.
_SCENE, _CHARACTERS, _PLACES, _TEXTURE, _NOISE = range(5)
_SCENE_DRAWS, _CHARACTER_DRAWS = 8, 5
# Places that are tried for a character before it is left out.
_TRIES = 20
# Points of the ground's grey along a side; between them it changes evenly.
_TEXTURE_POINTS = 5
# From so much of full ink on a pixel counts as drawn: what is lighter drowns in the noise.
_INK = 0.2
# A scene's noise is a window of one plate, as films' grain is put on in AV1: noise for each would take longer than all
# the rest. So many pixels the window can move each way.
_PLAY = 128
# Sides of patches, each so much larger than the one before, so that small characters cost little.
_SMALLEST, _GROWTH = 16, 1.5
# Side of the drawings of which the reach of each character is taken.
_MEASURED = 32


def scene_classes(style: SceneConfig) -> tuple[str, ...]:
    """The characters that scenes are made of."""
    return tuple(_characters(style))


def scene_batch(
    indices: Sequence[int] | Tensor, seed: int, style: SceneConfig | None = None
) -> tuple[Tensor, list[Target]]:
    """Render scenes; index i of a seed is always the same one, in any batch.

    Args:
        indices: Any integers from 0 on.
        seed: Another seed, other scenes.
        style: What varies and how much; see `SceneConfig` for the defaults.

    Returns:
        Images, uint8 ``[n, 1, style.side, style.side]``, light on dark unless the style inverts some; the target of
        each in pixels of these images.

    Raises:
        DataError: matplotlib came without one of its fonts.
    """
    style = style or SceneConfig()
    indices = torch.as_tensor(indices, dtype=torch.int64)
    scene = uniform(key_of(seed, _SCENE, 0), indices, _SCENE_DRAWS)
    arranged = _arranged(indices, seed, scene[:, 0], style)
    canvas, ground, contrast = _ground(indices, seed, scene, style)
    for pixels, base, most, characters in zip(canvas, ground, contrast, arranged, strict=True):
        for character in characters:
            x1, y1, x2, y2 = character.box
            region = pixels[y1:y2, x1:x2]
            grey = base + style.contrast + (most - style.contrast) * character.light
            region += character.ink * (grey - region)
    targets = [make_target([c.box for c in characters], [c.label for c in characters]) for characters in arranged]
    return _finished(canvas, scene, style), targets


@dataclass(frozen=True)
class _Character:
    """One character in its scene.

    Attributes:
        label: its class.
        ink: ``[height, width]`` from 0 to 1, cut tight.
        box: its corners in whole pixels; the ink fills it.
        light: how far it is from the least to the greatest contrast of the scene, 0 to 1.
    """

    label: int
    ink: Array
    box: list[int]
    light: float


def _arranged(indices: Tensor, seed: int, amount: Tensor, style: SceneConfig) -> list[list[_Character]]:
    """The characters of each scene, where they found a place; ``amount [n]`` from [0, 1) says how many are tried."""
    draw = uniform(key_of(seed, _CHARACTERS, 0), indices, style.most * _CHARACTER_DRAWS)
    draw = draw.view(-1, style.most, _CHARACTER_DRAWS)
    wanted = torch.arange(style.most) < 1 + (amount * style.most).long().unsqueeze(1)
    labels, inks = _patches(draw[wanted], style)
    sizes = np.zeros((*wanted.shape, 2), dtype=np.int64)
    sizes[wanted.numpy()] = np.array([ink.shape[::-1] for ink in inks], dtype=np.int64).reshape(-1, 2)
    tries = uniform(key_of(seed, _PLACES, 0), indices, style.most * _TRIES * 2).view(-1, style.most, _TRIES, 2)
    boxes, placed = _places(sizes, wanted.numpy(), tries.numpy(), style)
    arranged: list[list[_Character]] = [[] for _ in range(len(indices))]
    for (image, slot), label, ink in zip(wanted.nonzero().tolist(), labels, inks, strict=True):
        if placed[image, slot]:
            light = float(draw[image, slot, 4])
            arranged[image].append(_Character(label, ink, boxes[image, slot].tolist(), light))
    return arranged


def _characters(style: SceneConfig) -> str:
    return CHARACTERS[:10] if style.characters == "digits" else CHARACTERS


def _patches(draw: Tensor, style: SceneConfig) -> tuple[list[int], list[Array]]:
    """Labels and tight inks of turned and scaled characters, from uniform numbers ``[k, 4...]``.

    They decide which character, its font, its size and its angle.
    """
    characters = _characters(style)
    label = (draw[:, 0] * len(characters)).long()
    kind = label * len(FONTS) + (draw[:, 1] * len(FONTS)).long()
    least, greatest = style.size
    # As many between 10 and 20 pixels as between 20 and 40. A drawing's side is 2 / EM times the size of its font.
    side = 2 / EM * style.side * least * (greatest / least) ** draw[:, 2]
    angle = (2 * draw[:, 3] - 1) * math.radians(style.rotation)
    centre, reach = (values[kind] for values in _extents(characters))
    # Fonts have whole sizes and are fitted to pixels, so that a drawing may be larger than the measured one.
    level = _level(1.06 * reach * side + 4)
    tight: dict[int, Array] = {}
    for number in sorted(set(level.tolist())):
        which = (level == number).nonzero().squeeze(1)
        pixels = _level_side(number)
        scale = pixels / side[which]
        cos, sin = torch.cos(angle[which]) * scale, torch.sin(angle[which]) * scale
        first = torch.stack([cos, sin, centre[which, 0]], 1)
        second = torch.stack([-sin, cos, centre[which, 1]], 1)
        drawn = drawings(round(0.7 * pixels), torch.device("cpu"), characters)[kind[which]].unsqueeze(1)
        grid = sampling_grid(torch.stack([first, second], 1), pixels)
        inks = F.grid_sample(drawn.float() / 255, grid, padding_mode="zeros", align_corners=False).squeeze(1)
        tight.update(zip(which.tolist(), _tight(inks.numpy()), strict=True))
    return label.tolist(), [tight[place] for place in range(len(draw))]


def _level(pixels: Tensor) -> Tensor:
    """The number of the smallest patch that has so many pixels, or nearly so."""
    return (torch.log(pixels / _SMALLEST) / math.log(_GROWTH)).ceil().clamp(min=0).long()


def _level_side(level: int) -> int:
    return math.ceil(_SMALLEST * _GROWTH**level)


@functools.lru_cache(maxsize=2)
def _extents(characters: str) -> tuple[Tensor, Tensor]:
    """Where the ink of each drawing has its middle, x and y ``[kinds, 2]``, and how far it reaches from there.

    Both in units of half a drawing, whose own middle is 0; the reach ``[kinds]`` is half the diagonal of the ink's box,
    so that a circle of this radius holds the character at any angle.
    """
    drawn = drawings(_MEASURED, torch.device("cpu"), characters).numpy()
    bounds = torch.from_numpy(np.array([_bounds(drawing > 0) for drawing in drawn])).float()
    low, high = bounds[:, :2] / _MEASURED - 1, bounds[:, 2:] / _MEASURED - 1
    return (low + high) / 2, ((high - low) / 2).norm(dim=1)


def _tight(inks: Array) -> Iterator[Array]:
    """Each of the patches ``[k, p, p]`` cut to what is drawn."""
    for ink in inks:
        x1, y1, x2, y2 = _bounds(ink > _INK)
        yield ink[y1:y2, x1:x2]


def _bounds(drawn: Array) -> tuple[int, int, int, int]:
    """The corners of the smallest box around the true places of ``[height, width]``."""
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _places(sizes: Array, wanted: Array, tries: Array, style: SceneConfig) -> tuple[Array, Array]:
    """Boxes int64 ``[n, most, 4]`` in whole pixels, and which of them found a place, bool ``[n, most]``.

    ``sizes [n, most, 2]`` are widths and heights; ``tries [n, most, t, 2]`` numbers from [0, 1) for places to try.
    """
    boxes = np.zeros((*wanted.shape, 4), dtype=np.int64)
    placed = wanted.copy()
    everything = np.arange(len(sizes))
    for slot in range(wanted.shape[1]):
        size = sizes[:, slot, None]
        corner = np.floor(tries[:, slot] * (style.side - size + 1)).astype(np.int64)
        candidates = np.concatenate([corner, corner + size], -1)
        shared = _shared(candidates[:, :, None], boxes[:, None, :slot]) * placed[:, None, :slot]
        fits = shared.max(-1, initial=0) <= style.overlap
        boxes[:, slot] = candidates[everything, fits.argmax(1)]
        placed[:, slot] &= fits.any(1)
    return boxes, placed


def _shared(a: Array, b: Array) -> Array:
    """The area that boxes have in common, as a part of the smaller one."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    shared: Array = sides.clip(0).prod(-1) / np.minimum(*areas).clip(1)
    return shared


def _ground(indices: Tensor, seed: int, scene: Tensor, style: SceneConfig) -> tuple[Array, Array, Array]:
    """The empty scenes ``[n, side, side]``, 0 to 1, the mean grey of each, and how much lighter characters may be."""
    contrast = style.contrast + (1 - style.contrast) * scene[:, 1]
    ground = (1 - contrast) * scene[:, 2]
    points = uniform(key_of(seed, _TEXTURE, 0), indices, _TEXTURE_POINTS**2) - 0.5
    coarse = points.view(-1, 1, _TEXTURE_POINTS, _TEXTURE_POINTS) * (style.texture * scene[:, 3]).view(-1, 1, 1, 1)
    texture = F.interpolate(coarse, size=[style.side, style.side], mode="bilinear", align_corners=True)
    canvas = texture.squeeze(1) + ground.view(-1, 1, 1)
    return canvas.numpy(), ground.numpy(), contrast.numpy()


def _finished(canvas: Array, scene: Tensor, style: SceneConfig) -> Tensor:
    """Scenes ``[n, side, side]`` with noise, some of them inverted, as uint8 ``[n, 1, side, side]``."""
    if style.noise:
        plate = _plate(style.side + _PLAY)
        strength = (style.noise * scene[:, 4]).tolist()
        starts = (scene[:, 6:8] * (_PLAY + 1)).long().tolist()
        for pixels, factor, (x, y) in zip(canvas, strength, starts, strict=True):
            pixels += factor * plate[y : y + style.side, x : x + style.side]
    inverted = (scene[:, 5] < style.inverted).view(-1, 1, 1)
    scenes = torch.from_numpy(canvas)
    scenes = torch.where(inverted, 1 - scenes, scenes) if style.inverted else scenes
    return (255 * scenes).round_().clamp_(0, 255).to(torch.uint8).unsqueeze(1)


@functools.lru_cache(maxsize=2)
def _plate(side: int) -> Array:
    """Noise of mean 0 and variance 1, float32 ``[side, side]``; all scenes have theirs from here."""
    plate: Array = normal(key_of(_NOISE), torch.arange(side), side).numpy()
    return plate
