"""An endless set of rendered characters: 0-9, A-Z and a-z in the text fonts that ship with matplotlib.

Each character of each font is drawn once with Pillow at twice the size asked for. A batch is then made by one affine
resampling of those drawings, a random contrast, and noise, all in torch: tens of thousands of images a second on one
core. Index i of a seed is always the same image, whatever is rendered beside it, and there is no last index: a net that
sees each image once can only under-fit.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.errors import DataError
from netaug_fx.training.data.config import DataConfig, GlyphConfig
from netaug_fx.training.data.counters import key_of, normal, uniform
from netaug_fx.training.data.pictures import IN_MEMORY_BYTES
from netaug_fx.training.data.task import ImageSource, Task, TensorImages
from netaug_fx.training.data.transforms import Picture, sampling_grid, training_changes

Label = Literal["character", "character+font"]

SIDE = 28
CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# The files that hold all 62 characters as text. cmmi10 (italics of mathematics), cmsy10 and cmex10 (symbols in the
# places of letters) and LastResort (boxes) hold them only by name.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
# One run through every character of every font.
ROUND = len(CHARACTERS) * len(FONTS)
DEFAULT_SAMPLES = 60_000
# Size of the font over half the side of a drawing.
EM = 1.5

# Mean and standard deviation of a hundred thousand images of the default style at 28 pixels.
MEAN, STD = 0.239, 0.234
# No run has this seed, so validation images are never trained on.
_VALIDATION_SEED = -1
_POSES = 7


def class_names(label: Label = "character") -> tuple[str, ...]:
    """The 62 characters, or ``A DejaVuSans`` and so on for each character of each font."""
    if label == "character":
        return tuple(CHARACTERS)
    return tuple(f"{character} {font}" for character in CHARACTERS for font in FONTS)


def glyph_labels(indices: Sequence[int] | Tensor, label: Label = "character") -> Tensor:
    """The classes of the images at ``indices``, int64 ``[n]``; they depend on the index alone.

    Each 62 indices in a row hold every character once, and each `ROUND` hold every character of every font once.
    """
    character, font = _identity(torch.as_tensor(indices, dtype=torch.int64))
    return character if label == "character" else character * len(FONTS) + font


def glyph_batch(
    indices: Sequence[int] | Tensor,
    seed: int,
    *,
    side: int = SIDE,
    label: Label = "character",
    style: GlyphConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Render images; index i of a seed is always the same one, in any batch.

    Args:
        indices: Any integers from 0 on; a tensor decides the device that renders. Devices agree on what is rendered,
            but may round differently.
        seed: Another seed, other images with the same labels.
        side: Height and width in pixels.
        label: Whether the font counts for the class: 62 classes, or 62 for each font.
        style: Strength of the variation; see `GlyphConfig` for the defaults.

    Returns:
        Images, uint8 ``[n, 1, side, side]``, light on dark; labels, int64 ``[n]``.

    Raises:
        DataError: matplotlib came without one of its fonts.
    """
    style = style or GlyphConfig()
    indices = torch.as_tensor(indices, dtype=torch.int64)
    character, font = _identity(indices)
    drawn = drawings(side, indices.device)[character * len(FONTS) + font].unsqueeze(1)
    draw = uniform(key_of(seed, 0), indices, _POSES)
    grid = sampling_grid(_poses(draw, style), side)
    images = F.grid_sample(drawn.float(), grid, padding_mode="zeros", align_corners=False)
    # Glyph and ground differ by at least the least contrast; where they differ by less than 1, the ground is any grey.
    contrast = style.contrast + (1 - style.contrast) * draw[:, 4]
    ground = (1 - contrast) * draw[:, 5]
    images = images.mul_(contrast.view(-1, 1, 1, 1)).add_(255 * ground.view(-1, 1, 1, 1))
    if style.noise:
        noise = normal(key_of(seed, 1), indices, side * side).view_as(images)
        images.addcmul_(noise, (255 * style.noise * draw[:, 6]).view(-1, 1, 1, 1))
    return images.round_().clamp_(0, 255).to(torch.uint8), glyph_labels(indices, label)


def _poses(draw: Tensor, style: GlyphConfig) -> Tensor:
    """Maps from places in the image to places in the drawing, ``[n, 2, 3]``, from uniform numbers ``[n, 4...]``."""
    spread = 2 * draw - 1
    angle = spread[:, 0] * math.radians(style.rotation)
    # Twice as often half as large as twice as large would be too small to read: grow and shrink by the same factor.
    scale = (1 + style.scale) ** spread[:, 1]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # Coordinates run from -1 to 1, so one side is 2 units long.
    right, down = -2 * style.shift * spread[:, 2], -2 * style.shift * spread[:, 3]
    first = torch.stack([cos, sin, cos * right + sin * down], 1)
    second = torch.stack([-sin, cos, cos * down - sin * right], 1)
    return torch.stack([first, second], 1)


def _identity(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Which character of which font an index is."""
    turn = indices // len(CHARACTERS)
    character = indices % len(CHARACTERS)
    # In each row of 62 the characters come in different fonts, so that also small sets have all of both.
    stagger = (uniform(key_of(0), character, 1).squeeze(1) * len(FONTS)).long()
    return character, (turn + stagger) % len(FONTS)


@functools.lru_cache(maxsize=16)
def drawings(side: int, device: torch.device, characters: str = CHARACTERS) -> Tensor:
    """Each character of each font, uint8 ``[characters * fonts, 2 * side, 2 * side]``, white on black.

    Raises:
        DataError: matplotlib came without one of its fonts.
    """
    drawn = np.empty((len(characters), len(FONTS), 2 * side, 2 * side), dtype=np.uint8)
    for column, name in enumerate(FONTS):
        font = _font(name, size=round(EM * side))
        for row, character in enumerate(characters):
            canvas = Image.new("L", (2 * side, 2 * side))
            # All on one line, since size and place on it tell 'o' from 'O'; with room for what hangs below it.
            ImageDraw.Draw(canvas).text((side, 1.5 * side), character, fill=255, font=font, anchor="ms")
            drawn[row, column] = np.asarray(canvas)
    return torch.from_numpy(drawn).flatten(0, 1).to(device)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    try:
        return ImageFont.truetype(str(file), size)
    except OSError as error:
        raise DataError(
            f"glyphs are drawn with fonts that ship with matplotlib, and {file} cannot be read ({error}). Where a "
            "system's package leaves fonts out, install matplotlib with pip."
        ) from None


class Glyphs:
    """Glyphs as a data set; with ``fresh`` each epoch has images of its own, under the same labels."""

    def __init__(
        self, samples: int, seed: int, *, side: int, label: Label, style: GlyphConfig, fresh: bool = False
    ) -> None:
        self.samples, self.seed, self.fresh = samples, seed, fresh
        self.side, self.label, self.style = side, label, style
        self.labels = glyph_labels(range(samples), label)

    def __len__(self) -> int:
        return self.samples

    def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, 1, side, side]``."""
        # A whole number of rounds lies between epochs, so that an index keeps its label.
        start = epoch * math.ceil(self.samples / ROUND) * ROUND if self.fresh else 0
        places = torch.as_tensor(indices, dtype=torch.int64) + start
        return glyph_batch(places, self.seed, side=self.side, label=self.label, style=self.style)[0]

    def picture(self, index: int, epoch: int = 0) -> Picture:
        """The image at ``index``, uint8 ``[1, side, side]``."""
        return self.images([index], epoch)[0]


def load_glyphs(config: DataConfig, seed: int) -> Task:
    """``--data glyphs``: ``train_samples`` images an epoch by ``seed``, and the same ``val_samples`` for every seed.

    Raises:
        DataError: matplotlib came without one of its fonts.
    """
    side = config.image_size or SIDE
    samples = config.train_samples or DEFAULT_SAMPLES
    train = Glyphs(samples, seed, side=side, label=config.label, style=config.glyphs, fresh=config.fresh)
    val = Glyphs(config.val_samples, _VALIDATION_SEED, side=side, label=config.label, style=config.glyphs)
    return Task(
        name="glyphs",
        train=train if config.fresh else _held(train),
        val=_held(val),
        classes=class_names(config.label),
        channels=1,
        image_size=side,
        mean=(MEAN,),
        std=(STD,),
        augmentation=training_changes(config, side, shift=0.0, zoom=0.0, flip=False),
    )


def _held(source: Glyphs) -> ImageSource:
    """The same images rendered once, where they fit into memory."""
    if source.samples * source.side**2 > IN_MEMORY_BYTES:
        return source
    chunks = [range(start, min(start + 1000, source.samples)) for start in range(0, source.samples, 1000)]
    return TensorImages(torch.cat([source.images(chunk) for chunk in chunks]), source.labels)
