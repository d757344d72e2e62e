"""The settings that decide which images are seen, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from netaug_fx.training.section import Section


class GlyphConfig(Section):
    """How rendered characters vary. With the defaults a person still reads nearly all of them."""

    rotation: float = Field(default=20.0, ge=0, le=180, description="Glyphs turn by up to so many degrees.")
    shift: float = Field(default=0.1, ge=0, lt=0.5, description="Glyphs move by up to this part of the side.")
    scale: float = Field(default=0.25, ge=0, lt=1, description="Glyphs grow or shrink by up to this part.")
    contrast: float = Field(
        default=0.3, gt=0, le=1, description="Least difference between glyph and ground; the greatest is 1."
    )
    noise: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Greatest standard deviation of the noise on pixels, which run from 0 to 1.",
    )


class ImagesConfig(Section):
    """Which images to train on, of any kind of task."""

    name: str = Field(default="", description="Name of a data set, or a folder.")
    dir: str | None = Field(default=None, description="Folder that holds the data set.")
    image_size: Annotated[int, Field(ge=4)] | None = Field(
        default=None, description="Side of the square input in pixels."
    )
    batch_size: int = Field(default=64, ge=2, description="Images in a step, on each process.")
    workers: int = Field(
        default=0, ge=0, description="Processes that decode or render images; 0 does it in the training process."
    )


class DataConfig(ImagesConfig):
    """Which images to train on, and what is done to them."""

    name: str = Field(
        default="digits",
        description="`digits`, `glyphs`, `imagefolder`, `cifar10`, `cifar100`, `flowers102`, `food101`, "
        "`stanford_cars`, `oxford_pets`, `imagenet`, `imagenet21k_p`, `hf:NAME`, `wds:PATTERN`, or a folder with one "
        "sub-folder of images for each class.",
    )
    dir: str | None = Field(
        default=None, description="Folder that holds the data set; for `hf:NAME`, where downloads are kept."
    )
    image_size: Annotated[int, Field(ge=4)] | None = Field(
        default=None,
        description="Side of the square input in pixels. Unset: the set's own for small squares (8 for digits, 28 for "
        "glyphs, 32 for CIFAR); for other images, what the net was made for (or 64).",
    )
    val_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="Part of each class that is held out where the data has no `val` folder."
    )
    shift: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(
        default=None, description="Training images move by up to this part of their side. Unset: 0.1; glyphs: 0."
    )
    zoom: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Training images grow or shrink by up to this part. Unset: 0.25; digits: 0.1; CIFAR and glyphs: 0.",
    )
    flip: bool | None = Field(
        default=None, description="Mirror half of the training images. Unset: yes; digits and glyphs: no."
    )
    crop_scale: tuple[float, float] | None = Field(
        default=None,
        description="Training images are random parts of this share of the area, resized, instead of `shift` and "
        "`zoom`; 0.08 to 1 is usual. Needs torchvision.",
    )
    brightness: float = Field(
        default=0.0, ge=0, lt=1, description="Training images get up to so much brighter or darker. Needs torchvision."
    )
    saturation: float = Field(
        default=0.0, ge=0, lt=1, description="Training images get up to so much more or less colour. Needs torchvision."
    )
    val_crop: float = Field(
        default=1.0,
        ge=0.1,
        le=1,
        description="Part of the resized side that the central crop of validation images keeps; 0.875 is usual for "
        "ImageNet.",
    )
    train_samples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Images in an epoch of glyphs (unset: 60,000) or of shards (unset: all, which are counted once).",
    )
    val_samples: int = Field(default=10_000, ge=1, description="Validation images of glyphs.")
    fresh: bool = Field(default=True, description="Glyphs: each epoch new images, or the same ones again.")
    label: Literal["character", "character+font"] = Field(
        default="character", description="Glyphs: 62 classes, or one for each character of each font."
    )
    glyphs: GlyphConfig = Field(default=GlyphConfig(), description="How glyphs vary.")
    hf_config: str | None = Field(
        default=None, description="Configuration of a Hugging Face data set that has several."
    )
    image_column: str | None = Field(
        default=None, description="Hugging Face: the column of images. Unset: the only one of that type."
    )
    label_column: str | None = Field(
        default=None, description="Hugging Face: the column of classes. Unset: the only one of that type, or `label`."
    )
    val_shards: str | None = Field(
        default=None, description="Pattern of the validation shards of `wds:`. Unset: `val_fraction` of the shards."
    )
    num_classes: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Classes in shards. Unset: the largest class number found, and one."
    )

    @model_validator(mode="after")
    def _changes_fit(self) -> DataConfig:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"data.crop_scale is two parts of the area, such as [0.08, 1.0], found {self.crop_scale}")
        if self.needs_torchvision and (self.shift or self.zoom):
            raise ValueError(
                "data.shift and data.zoom do not go with data.crop_scale, data.brightness and data.saturation, which "
                "take images at their own size; leave one or the other away"
            )
        return self

    @property
    def needs_torchvision(self) -> bool:
        """Whether training images are read at their own size and changed by torchvision's transforms."""
        return self.crop_scale is not None or self.brightness > 0 or self.saturation > 0
