"""The settings that decide which images with boxes are seen, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from netaug_fx.training.data.config import ImagesConfig
from netaug_fx.training.section import Section


class SceneConfig(Section):
    """How glyph scenes vary: characters on a ground, drawn at one size whatever size the net sees."""

    side: int = Field(
        default=160,
        ge=32,
        description="Side in pixels at which scenes are drawn, before they are resized to `data.image_size`: a scene "
        "is the same one at each resolution.",
    )
    characters: Literal["digits", "all"] = Field(
        default="digits", description="10 classes, the digits; or 62, with letters of both cases."
    )
    most: int = Field(default=8, ge=1, le=32, description="A scene has one to so many characters.")
    size: tuple[float, float] = Field(
        default=(0.15, 0.45),
        description="Least and greatest size of the font, as parts of the side; digits are about 0.7 of it in height.",
    )
    rotation: float = Field(default=20.0, ge=0, le=180, description="Characters turn by up to so many degrees.")
    overlap: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Two boxes share at most this part of the smaller one; characters that find no such place are left "
        "out.",
    )
    contrast: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Least difference between a character and the ground's mean; the greatest is 1.",
    )
    texture: float = Field(
        default=0.2, ge=0, le=1, description="The ground's grey varies slowly, by up to this much from end to end."
    )
    noise: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Greatest standard deviation of the noise on pixels, which run from 0 to 1.",
    )
    inverted: float = Field(default=0.0, ge=0, le=1, description="Part of the scenes that are dark on light.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> SceneConfig:
        if not 0.05 <= self.size[0] <= self.size[1] <= 0.6:
            raise ValueError(f"data.scenes.size is two ascending parts of the side, 0.05 to 0.6, found {self.size}")
        return self


class DetectionDataConfig(ImagesConfig):
    """Which images with boxes to train on, and what is done to them."""

    name: str = Field(default="scenes", description="`scenes` (rendered characters), `coco` or `voc`.")
    image_size: Annotated[int, Field(ge=16)] | None = Field(
        default=None,
        description="Side of the square input in pixels, to which images are stretched. Unset: 96 for scenes, 416 for "
        "photographs.",
    )
    batch_size: int = Field(default=16, ge=2, description="Images in a step, on each process.")
    train_annotations: str = Field(
        default="annotations/instances_train2017.json",
        description="`coco`: annotations to train on, in `data.dir` unless the path is absolute.",
    )
    train_images: str = Field(default="train2017", description="`coco`: the folder of their images, likewise.")
    val_annotations: str = Field(
        default="annotations/instances_val2017.json", description="`coco`: annotations to validate on, likewise."
    )
    val_images: str = Field(default="val2017", description="`coco`: the folder of their images, likewise.")
    flip: bool | None = Field(default=None, description="Mirror half of the training images. Unset: yes; scenes: no.")
    zoom_out: float = Field(
        default=1.0,
        ge=1,
        description="Half of the training images are put onto a plain ground up to so many times larger; 4 is usual, 1 "
        "leaves them. Needs torchvision.",
    )
    iou_crop: bool = Field(
        default=False,
        description="Training images are random parts that overlap a box by a random amount. Needs torchvision.",
    )
    scale_jitter: tuple[float, float] | None = Field(
        default=None,
        description="Training images are scaled by a factor between these two, then cut or filled up; 0.5 to 1.5 is "
        "mild. Needs torchvision.",
    )
    brightness: float = Field(
        default=0.0, ge=0, lt=1, description="Training images get up to so much brighter or darker. Needs torchvision."
    )
    saturation: float = Field(
        default=0.0, ge=0, lt=1, description="Training images get up to so much more or less colour. Needs torchvision."
    )
    train_samples: int = Field(default=1600, ge=1, description="Scenes in an epoch.")
    val_samples: int = Field(default=500, ge=1, description="Scenes to validate on.")
    fresh: bool = Field(default=True, description="Scenes: each epoch new ones, or the same ones again.")
    scenes: SceneConfig = Field(default=SceneConfig(), description="How scenes vary.")

    @model_validator(mode="after")
    def _jitter_fits(self) -> DetectionDataConfig:
        if self.scale_jitter is not None and not 0.1 <= self.scale_jitter[0] <= self.scale_jitter[1] <= 10:
            raise ValueError(f"data.scale_jitter is two factors, such as [0.5, 1.5], found {self.scale_jitter}")
        return self

    @property
    def needs_torchvision(self) -> bool:
        """Whether training images are changed by torchvision's transforms."""
        torchvisions = self.zoom_out > 1 or self.iou_crop or self.scale_jitter is not None
        return torchvisions or self.brightness > 0 or self.saturation > 0
