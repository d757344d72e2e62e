"""The settings of ``netaug-fx train --task detect``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from netaug_fx.training.config import ArmsConfig
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.section import Section
from netaug_fx.training.settings import ModelConfig, OptimConfig


class AnswerConfig(Section):
    """How predictions become the detections that are judged."""

    score: float = Field(
        default=0.01, ge=0, lt=1, description="Detections below are left out; mean average precision wants weak ones."
    )
    overlap: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Of two detections of a class whose intersection over union is above, the weaker one goes.",
    )
    limit: int = Field(
        default=100, ge=1, le=100, description="Most detections of an image; COCO's evaluation takes 100."
    )
    shown_score: float = Field(default=0.4, ge=0, le=1, description="Detections below are not drawn in the report.")
    shown_images: int = Field(default=8, ge=0, description="Validation images that the report shows with their boxes.")


class DetectConfig(ArmsConfig):
    """The settings of ``netaug-fx train --task detect``."""

    task: Literal["detect"] = Field(default="detect", description="What is learnt: objects and their boxes.")
    model: ModelConfig = Field(default=ModelConfig(name="yolo_scenes"), description="The detector.")
    data: DetectionDataConfig = Field(default=DetectionDataConfig(), description="The images with boxes.")
    optim: OptimConfig = Field(
        default=OptimConfig(epochs=8, lr=0.1, clip_norm=10.0), description="The optimizer and its schedule."
    )
    detect: AnswerConfig = Field(default=AnswerConfig(), description="How detections are made and judged.")

    @model_validator(mode="after")
    def _no_classifiers_settings(self) -> DetectConfig:
        for name in ("mixup", "label_smoothing"):
            if getattr(self.optim, name):
                raise ValueError(f"optim.{name} is for classification; leave it at 0 with task: detect")
        return self
