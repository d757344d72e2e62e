"""The settings of a training run: typed, each with a description and a default, unknown names refused.

Precedence is command line, then ``--config FILE.yaml``, then the defaults below. The resolved settings are written
to ``config.yaml`` of the run folder, which can be given to ``--config`` again.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from netaug_fx.errors import InputError
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.section import Section

ArmName = Literal["baseline", "netaug"]
Factors = float | list[float]
Ratio = Factors | dict[str, Factors]

# Where the command line has a shorter name for a setting, errors name both.
FLAGS = {
    "model.name": "--model",
    "data.name": "--data",
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


class ModelConfig(Section):
    """Which net to train."""

    name: str = Field(default="digits_net", description="Zoo name, `timm:NAME`, or `path/to/file.py:function`.")
    weights: str | None = Field(
        default=None,
        description="Trained weights to start from: a .safetensors file or a .pt state_dict. The classifier is new where "
        "the data has other classes.",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="More keyword arguments for the function that builds the net, such as `dropout: 0.1`.",
    )


class NetAugConfig(Section):
    """How the wider nets around the tiny one are drawn (Cai et al., ICLR 2022, section 3)."""

    ratio: Ratio | None = Field(
        default=3.0,
        description="Widest net over tiny net: a number, a list of factors, or one list for each of `stream` and "
        "`inner`. `null` trains the baseline alone.",
    )
    pin: list[str] = Field(default_factory=list, description="Module paths (globs) that keep their width.")
    divisor: int = Field(default=1, ge=1, description="Widths are rounded to multiples of this.")
    alpha: float = Field(default=1.0, gt=0, description="Weight of each wider net's loss.")
    draws: int = Field(default=1, ge=1, description="Wider nets in each step.")
    pool: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Draw from this many fixed assignments of widths; unset: from all."
    )
    phase_two_epochs: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="The last epochs, in which only inner widths are drawn; before them all are. Unset: half of them.",
    )
    initialise: Literal["keep", "widest"] = Field(
        default="keep",
        description="First weights: `keep` the tiny net's own, or draw all anew for the `widest` net, as the paper does.",
    )
    sort: bool = Field(
        default=False,
        description="At the start of each epoch of phase one, move the most important inner channels into the tiny net.",
    )

    @field_validator("ratio")
    @classmethod
    def _ratio_can_be_used(cls, ratio: Ratio | None) -> Ratio | None:
        if ratio is None:
            return None
        strangers = set(ratio) - {"stream", "inner"} if isinstance(ratio, dict) else set()
        if strangers:
            raise ValueError(f"kinds of groups are 'stream' and 'inner', found {', '.join(map(repr, strangers))}")
        for factors in ratio.values() if isinstance(ratio, dict) else [ratio]:
            if isinstance(factors, list) and not factors:
                raise ValueError("a list of factors must hold at least one number")
            for factor in factors if isinstance(factors, list) else [factors]:
                if not math.isfinite(factor) or factor < 1:
                    raise ValueError(f"every factor must be a finite number of at least 1, found {factor}")
        return ratio


class DistillConfig(Section):
    """Who else teaches the tiny net: another net that is trained already, or the wider nets around it."""

    teacher: str | None = Field(
        default=None, description="A trained net, named as `model.name`; teaches the tiny net in all arms."
    )
    teacher_weights: str | None = Field(
        default=None, description="Its weights: a .safetensors file, or a .pt state_dict."
    )
    teacher_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More arguments for the function that builds it, such as `pretrained: true`."
    )
    in_place: bool = Field(
        default=False,
        description="The widest net takes the place of one drawn net, and its output teaches the tiny net.",
    )
    weight: float = Field(default=1.0, gt=0, description="Weight of a teacher's term beside the loss on the labels.")
    temperature: float = Field(default=1.0, gt=0, description="Softens the outputs of teacher and tiny net alike.")
    project: bool = Field(
        default=False, description="Where gradients conflict, take the tiny net's direction out of the wider nets'."
    )

    @model_validator(mode="after")
    def _weights_have_a_net(self) -> DistillConfig:
        if self.teacher is None and (self.teacher_weights is not None or self.teacher_kwargs):
            raise ValueError("teacher_weights and teacher_kwargs need a teacher (--teacher)")
        return self


class OptimConfig(Section):
    """SGD with Nesterov momentum; warm-up, then cosine, by iteration. Biases and norms have no weight decay."""

    epochs: int = Field(default=25, ge=1, description="Passes over the training images, for each arm.")
    lr: float = Field(default=0.1, gt=0, description="Highest learning rate, reached after the warm-up.")
    lr_images: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="`lr` is meant for steps of this many images and grows or shrinks in proportion. Unset: any.",
    )
    warmup_epochs: float = Field(default=2.0, ge=0, description="Epochs over which the learning rate rises from zero.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum; 0 is plain SGD.")
    weight_decay: float = Field(default=4e-5, ge=0, description="Decay of the weights, but not of biases and norms.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Part of each target spread over all classes.")
    accumulate: int = Field(default=1, ge=1, description="Batches whose gradients are added up for one step.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Gradients are scaled down to this L2 norm; unset: never."
    )
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of a running average of the weights (0.9999), which is then validated and delivered.",
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="Mixed precision of forward passes; fp16 needs a GPU."
    )


class KeepConfig(Section):
    """What is written while a run goes on, and which weights it delivers."""

    minutes: float = Field(
        default=10.0, ge=0, description="A checkpoint is written at each epoch's end, and this often in between."
    )
    deliver: Literal["last", "best"] = Field(
        default="last",
        description="Deliver the last weights, or those of the epoch with the best validation accuracy (which flatters: "
        "they were chosen by the images they are judged on).",
    )


class TrackingConfig(Section):
    """Where else the metrics go, beside `metrics.csv`."""

    tensorboard: bool = Field(default=False, description="Also write them for TensorBoard, into the run folder.")
    wandb: str | None = Field(default=None, description="Also send them to this project on Weights & Biases.")


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
            raise ValueError("distill.in_place and distill.project need the arm netaug: wider nets teach or conflict there")
        if (self.netaug.phase_two_epochs or 0) > self.optim.epochs:
            raise ValueError(
                f"netaug.phase_two_epochs is {self.netaug.phase_two_epochs}, more than optim.epochs ({self.optim.epochs})"
            )
        return self

    @property
    def active_arms(self) -> tuple[ArmName, ...]:
        """The arms to train: without a ratio there is nothing to augment, so only the baseline."""
        return tuple(arm for arm in self.arms if arm == "baseline" or self.netaug.ratio is not None)

    def to_yaml(self) -> str:
        """The settings as YAML that `load_config` reads back."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Resolve the settings of a run.

    Args:
        file: YAML file, or None for the defaults.
        overrides: dotted names such as ``{"optim.lr": 0.1}``; they win over the file.

    Raises:
        InputError: the file cannot be read, a name is unknown, or a value is out of range; names the setting.
    """
    settings = _read_yaml(file) if file is not None else {}
    for name, value in (overrides or {}).items():
        *sections, field = name.split(".")
        target = settings
        for section in sections:
            inner = target.setdefault(section, {})
            if not isinstance(inner, dict):
                raise InputError(
                    f"setting {section!r} in {file}: found {inner!r}, expected a mapping with {field!r} in it"
                )
            target = inner
        target[field] = value
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError("\n".join(_explain(error, file))) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file} cannot be read: {error}. Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {file} is not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InputError(
            f"--config {file} holds a {type(settings).__name__}; expected settings such as 'optim: {{epochs: 10}}'"
        )
    return settings


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
