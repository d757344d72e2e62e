"""The settings of a training run: typed, each with a description and a default, unknown names refused.

Precedence is command line, then ``--config`` (a YAML file or a recipe), then the defaults. The resolved settings are
written to ``config.yaml`` of the run folder, which can be given to ``--config`` again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from netaug_fx.errors import InputError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.recipes import read_settings
from netaug_fx.training.section import Section
from netaug_fx.training.settings import (
    DistillConfig,
    KeepConfig,
    ModelConfig,
    NetAugConfig,
    OptimConfig,
    TrackingConfig,
)

ArmName = Literal["baseline", "netaug"]

# Where the command line has a shorter name for a setting, errors name both.
FLAGS = {
    "model.name": "--model",
    "model.weights": "--weights",
    "data.name": "--data",
    "data.dir": "--data-dir",
    "data.image_size": "--image-size",
    "data.batch_size": "--batch-size",
    "netaug.ratio": "--ratio",
    "distill.teacher": "--teacher",
    "distill.teacher_weights": "--teacher-weights",
    "distill.in_place": "--in-place",
    "optim.precision": "--precision",
    "optim.epochs": "--epochs",
    "optim.lr": "--lr",
    "arms": "--arms",
    "seed": "--seed",
    "opset": "--opset",
}


class TrainConfig(Section):
    """Everything that decides the result of a run."""

    model: ModelConfig = Field(default=ModelConfig(), description="The net.")
    data: DataConfig = Field(default=DataConfig(), description="The images.")
    netaug: NetAugConfig = Field(default=NetAugConfig(), description="Network Augmentation.")
    distill: DistillConfig = Field(default=DistillConfig(), description="Teachers.")
    optim: OptimConfig = Field(default=OptimConfig(), description="The optimizer and its schedule.")
    keep: KeepConfig = Field(default=KeepConfig(), description="Checkpoints.")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="Metrics for others.")
    arms: list[ArmName] = Field(
        default=["baseline", "netaug"],
        min_length=1,
        description="What to train, from the same seed, for the same number of steps: `baseline`, `netaug`, or both.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides initial weights, data order and drawn widths.")
    device: Literal["auto", "cpu"] = Field(default="auto", description="`auto` uses an accelerator where there is one.")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of torch; unset: 1 for digits, where more only get in each other's way, else torch's "
        "own. Results are the same bit for bit only for the same number.",
    )
    opset: int | None = Field(default=None, ge=1, description="ONNX opset of `tiny.onnx`; unset: the exporter's own.")

    @model_validator(mode="after")
    def _arms_fit(self) -> TrainConfig:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms names one arm twice: {self.arms}")
        if self.netaug.ratio is None and self.arms == ["netaug"]:
            raise ValueError("the arm netaug needs netaug.ratio (--ratio), which is null")
        if (self.distill.in_place or self.distill.project) and "netaug" not in self.active_arms:
            raise ValueError(
                "distill.in_place and distill.project need the arm netaug: wider nets teach or conflict there"
            )
        if self.netaug.initialise == "widest" and self.model.weights is not None:
            raise ValueError(
                "netaug.initialise: widest draws all weights anew, and those of model.weights (--weights) would be "
                "lost; set it to keep"
            )
        return self

    @property
    def active_arms(self) -> tuple[ArmName, ...]:
        """The arms to train: without a ratio there is nothing to augment, so only the baseline."""
        return tuple(arm for arm in self.arms if arm == "baseline" or self.netaug.ratio is not None)

    def to_yaml(self) -> str:
        """The settings as YAML that `load_config` reads back."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Resolve the settings of a run.

    Args:
        file: YAML file or the name of a recipe, or None for the defaults.
        overrides: dotted names such as ``{"optim.lr": 0.1}``; they win over the file.
        defaults: dotted names likewise; the file wins over them.

    Raises:
        InputError: the file cannot be read, a name is unknown, or a value is out of range; names the setting.
    """
    settings = read_settings(file) if file is not None else {}
    for name, value in (defaults or {}).items():
        section, field = _place(settings, name, file)
        section.setdefault(field, value)
    for name, value in (overrides or {}).items():
        section, field = _place(settings, name, file)
        section[field] = value
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError("\n".join(_explain(error, file))) from None


def _place(settings: dict[str, Any], name: str, file: Path | None) -> tuple[dict[str, Any], str]:
    """Where a setting of a dotted name stands: its section, made if need be, and its last name."""
    *sections, field = name.split(".")
    place = settings
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"setting {section!r} in {file}: found {inner!r}, expected a mapping with {field!r} in it")
        place = inner
    return place, field


def _explain(error: ValidationError, file: Path | None) -> Iterator[str]:
    """One line for each setting that is wrong: its name, what was found, what is expected, what to do."""
    known = dict(setting_names())
    source = f" in {file}" if file is not None else ""
    expected: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for problem in error.errors():
        # Members of a union are repeated in the location; only the parts that are settings help the reader.
        location = [str(part) for part in problem["loc"]]
        depth = next((n for n in range(len(location), 0, -1) if ".".join(location[:n]) in known), len(location))
        name = ".".join(location[:depth])
        if problem["type"] == "extra_forbidden":
            hint = " or ".join(_close_names(name, known)) or "one of " + ", ".join(known)
            yield f"unknown setting {name!r}{source}; did you mean {hint}?"
            continue
        what = problem["msg"].removeprefix("Value error, ")
        expected.setdefault(name, []).append(what[:1].lower() + what[1:])
        if not isinstance(problem["input"], dict):
            found[name] = f": found {problem['input']!r}"
    for name, whats in expected.items():
        flag = f" ({FLAGS[name]})" if name in FLAGS else ""
        subject = f"setting {name!r}{flag}{source}{found.get(name, '')}" if name else f"settings{source}"
        meaning = f". It means: {known[name]}" if known.get(name) else ""
        yield f"{subject}; {', or '.join(dict.fromkeys(whats))}{meaning}"


def _close_names(name: str, known: Mapping[str, str]) -> list[str]:
    """Settings a user may have meant: the same last part elsewhere first, then alike spellings."""
    same_leaf = [full for full in known if full.split(".")[-1] == name.split(".")[-1]]
    return list(dict.fromkeys([*same_leaf, *difflib.get_close_matches(name, known, n=3, cutoff=0.6)]))


def setting_names(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as (dotted name, description), in order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""
