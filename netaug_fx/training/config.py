"""The settings of a run: typed, each with a description and a default, unknown names refused.

Precedence is command line, then ``--config`` (a YAML file or a recipe), then the defaults. The resolved settings are
written to ``config.yaml`` of the run folder, which can be given to ``--config`` again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from netaug_fx.errors import InputError
from netaug_fx.training.data.config import DataConfig, ImagesConfig
from netaug_fx.training.recipes import merged, read_settings
from netaug_fx.training.section import Section
from netaug_fx.training.settings import (
    DeliverConfig,
    DistillConfig,
    KeepConfig,
    ModelConfig,
    NetAugConfig,
    OptimConfig,
    SearchConfig,
    SplitConfig,
    TrackingConfig,
)

ArmName = Literal["baseline", "netaug"]

# Where the command line has a shorter name for a setting, errors name both.
FLAGS = {
    "task": "--task",
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
    "evolve.keep": "--keep",
    "evolve.method": "--method",
    "evolve.generations": "--generations",
    "evolve.loss": "--loss",
    "evolve.control": "--control",
    "enlarge.times": "--times",
    "enlarge.macs": "--macs",
    "enlarge.step": "--step",
    "enlarge.dims": "--dims",
    "enlarge.epochs": "--trial-epochs",
    "enlarge.inherit": "--inherit",
    "enlarge.journal": "--journal",
    "enlarge.compare": "--compare",
    "jobs": "--jobs",
    "arms": "--arms",
    "seed": "--seed",
    "opset": "--opset",
}


class RunConfig(Section):
    """What decides the result of any run."""

    verb: ClassVar[str] = "train"

    model: ModelConfig = Field(default=ModelConfig(), description="The net.")
    data: ImagesConfig = Field(default=ImagesConfig(), description="The images.")
    optim: OptimConfig = Field(default=OptimConfig(), description="The optimizer and its schedule.")
    keep: KeepConfig = Field(default=KeepConfig(), description="Checkpoints.")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="Metrics for others.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides initial weights, data order and drawn widths.")
    device: Literal["auto", "cpu"] = Field(default="auto", description="`auto` uses an accelerator where there is one.")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of torch; unset: 1 for digits, where more only get in each other's way, else torch's "
        "own. Results are the same bit for bit only for the same number.",
    )
    opset: int | None = Field(
        default=None, ge=1, description="ONNX opset of what is exported; unset: the exporter's own."
    )

    def to_yaml(self) -> str:
        """The settings as YAML that `load_config` reads back."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class ArmsConfig(RunConfig):
    """What decides the result of a run with and without augmentation."""

    netaug: NetAugConfig = Field(default=NetAugConfig(), description="Network Augmentation.")
    keep: DeliverConfig = Field(default=DeliverConfig(), description="Checkpoints.")
    arms: list[ArmName] = Field(
        default=["baseline", "netaug"],
        min_length=1,
        description="What to train, from the same seed, for the same number of steps: `baseline`, `netaug`, or both.",
    )

    @model_validator(mode="after")
    def _arms_fit(self) -> ArmsConfig:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms names one arm twice: {self.arms}")
        if self.netaug.ratio is None and self.arms == ["netaug"]:
            raise ValueError("the arm netaug needs netaug.ratio (--ratio), which is null")
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


class TrainConfig(ArmsConfig):
    """The settings of ``netaug-fx train``."""

    task: Literal["classify"] = Field(
        default="classify",
        description="What is learnt: `classify` (a class for each image) or `detect` (objects and their boxes).",
    )
    data: DataConfig = Field(default=DataConfig(), description="The images.")
    distill: DistillConfig = Field(default=DistillConfig(), description="Teachers.")

    @model_validator(mode="after")
    def _wider_nets_teach(self) -> TrainConfig:
        augmented = "netaug" in self.active_arms
        if (self.distill.in_place or self.distill.project) and not augmented:
            raise ValueError(
                "distill.in_place and distill.project need the arm netaug: wider nets teach or conflict there"
            )
        if augmented and self.netaug.pool is not None and self.netaug.draws == 1 and self.distill.wider_nets_teach:
            raise ValueError(
                "netaug.pool would not be used: the one wider net of a step is the widest, which teaches; add "
                "netaug.draws: 2, or let it not teach (--no-in-place, distill.in_place: false)"
            )
        return self


class EvolveConfig(RunConfig):
    """The settings of ``netaug-fx evolve``; ``optim`` is that of each generation."""

    verb: ClassVar[str] = "evolve"

    model: ModelConfig = Field(default=ModelConfig(name="resnet20"), description="The net.")
    data: DataConfig = Field(default=DataConfig(batch_size=32), description="The images.")
    optim: OptimConfig = Field(
        default=OptimConfig(epochs=20, weight_decay=1e-4, label_smoothing=0.1),
        description="The optimizer and its schedule, anew in each generation.",
    )
    evolve: SplitConfig = Field(default=SplitConfig(), description="Knowledge Evolution.")

    @model_validator(mode="after")
    def _generations_fit(self) -> EvolveConfig:
        if self.optim.average is not None:
            raise ValueError(
                "optim.average is for netaug-fx train: generations hand the weights themselves on, not their average"
            )
        if self.optim.mixup and self.evolve.loss != "labels":
            raise ValueError(f"optim.mixup leaves images of no one class, which evolve.loss: {self.evolve.loss} needs")
        return self


class EnlargeConfig(RunConfig):
    """The settings of ``netaug-fx enlarge``; candidates and nets at the end have the same ``optim``, but for epochs."""

    verb: ClassVar[str] = "enlarge"

    data: DataConfig = Field(default=DataConfig(), description="The images.")
    enlarge: SearchConfig = Field(default=SearchConfig(), description="Greedy Network Enlarging.")
    jobs: int = Field(
        default=1,
        ge=1,
        description="Processes that train candidates side by side, each with one thread where `threads` is unset. "
        "Scores are the same for any number on digits, and where `threads` is set.",
    )

    @model_validator(mode="after")
    def _averages_are_out(self) -> EnlargeConfig:
        if self.optim.average is not None:
            raise ValueError("optim.average is for netaug-fx train: short trainings end before an average means much")
        return self


Config = TypeVar("Config", bound=RunConfig)


def load_config(
    kind: type[Config],
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> Config:
    """Resolve the settings of a run.

    Args:
        kind: What kind of run.
        file: YAML file or the name of a recipe, or None for the defaults.
        overrides: dotted names such as ``{"optim.lr": 0.1}``; they win over the file.
        defaults: dotted names likewise; the file wins over them, in mappings entry by entry.
        base: the recipe that a file extends which does not say so.

    Raises:
        InputError: the file cannot be read, a name is unknown, or a value is out of range; names the setting.
    """
    settings = merged(_section_defaults(kind), read_settings(file, base) if file is not None else {})
    for name, value in (defaults or {}).items():
        section, field = _place(settings, name, file)
        both = isinstance(value, Mapping) and isinstance(section.get(field), Mapping)
        section[field] = {**value, **section[field]} if both else section.get(field, value)
    for name, value in (overrides or {}).items():
        section, field = _place(settings, name, file)
        section[field] = value
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise InputError("\n".join(_explain(error, kind, file))) from None


def _section_defaults(kind: type[RunConfig]) -> dict[str, Any]:
    """Where a kind of run has defaults of its own: they hold beside other settings of the section, too."""
    sections = {name: field.default for name, field in kind.model_fields.items()}
    found = {name: s.model_dump(exclude_unset=True) for name, s in sections.items() if isinstance(s, BaseModel)}
    return {name: values for name, values in found.items() if values}


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


def _explain(error: ValidationError, kind: type[RunConfig], file: Path | None) -> Iterator[str]:
    """One line for each setting that is wrong: its name, what was found, what is expected, what to do."""
    known = dict(setting_names(kind))
    source = f" in {file}" if file is not None else ""
    expected: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for problem in error.errors():
        # Members of a union are repeated in the location; only the parts that are settings help the reader.
        location = [str(part) for part in problem["loc"]]
        depth = next((n for n in range(len(location), 0, -1) if ".".join(location[:n]) in known), len(location))
        name = ".".join(location[:depth])
        if problem["type"] == "extra_forbidden" and (flags := _flags_of(name, problem["input"])):
            yield f"{_run_name(kind)} has no setting {', '.join(flags)}{source}; leave it out"
            continue
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


def _flags_of(name: str, found: Any) -> list[str]:
    """The settings of other runs that have a shorter name on the command line, with it."""
    names = [f"{name}.{key}" for key in found] if isinstance(found, dict) else [name]
    return [f"{each!r} ({FLAGS[each]})" for each in names if each in FLAGS]


def _run_name(kind: type[RunConfig]) -> str:
    task = kind.model_fields.get("task")
    return f"netaug-fx {kind.verb}" + (f" --task {task.default}" if task else "")


def _close_names(name: str, known: Mapping[str, str]) -> list[str]:
    """Settings a user may have meant: the same last part elsewhere first, then alike spellings."""
    same_leaf = [full for full in known if full.split(".")[-1] == name.split(".")[-1]]
    return list(dict.fromkeys([*same_leaf, *difflib.get_close_matches(name, known, n=3, cutoff=0.6)]))


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as (dotted name, description), in order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""
