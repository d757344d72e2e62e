"""The settings that decide which images are seen, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from netaug_fx.training.section import Section


class DataConfig(Section):
    """Which images to train on, and what is done to them."""

    name: str = Field(
        default="digits", description="`digits`, or a folder with one sub-folder of images for each class."
    )
    image_size: Annotated[int, Field(ge=4)] | None = Field(
        default=None,
        description="Side of the square input in pixels. Unset: 8 for digits; for a folder, what the net was made for "
        "(or 64).",
    )
    batch_size: int = Field(default=64, ge=2, description="Images in a step, on each process.")
    val_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="Part of each class that is held out where the data has no `val` folder."
    )
    shift: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(
        default=None, description="Training images move by up to this part of their side. Unset: 0.1."
    )
    zoom: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Training images grow or shrink by up to this part. Unset: 0.1 for digits, 0.25 for a folder.",
    )
    flip: bool | None = Field(
        default=None, description="Mirror half of the training images. Unset: no for digits, yes for a folder."
    )
    workers: int = Field(
        default=0, ge=0, description="Processes that decode images; 0 decodes in the training process."
    )
