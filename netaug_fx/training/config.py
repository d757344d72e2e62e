"""The settings of a training run: typed, each with a description and a default, unknown names refused.

Precedence is command line, then ``--config FILE.yaml``, then the defaults below. The resolved settings are written
to ``config.yaml`` of the run folder, which can be given to ``--config`` again.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from netaug_fx.errors import InputError

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
    "optim.epochs": "--epochs",
    "optim.lr": "--lr",
    "arms": "--arms",
    "seed": "--seed",
    "opset": "--opset",
}


class Section(BaseModel):
    """A group of settings that refuses names it does not know and cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    """Which net to train."""

    name: str = Field(default="digits_net", description="Zoo name, `timm:NAME`, or `path/to/file.py:function`.")
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="More keyword arguments for the function that builds the net, such as `dropout: 0.1`.",
    )


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


class NetAugConfig(Section):
    """How the wider nets around the tiny one are drawn (Cai et al., ICLR 2022, section 3)."""

    ratio: Ratio | None = Field(
        default=3.0,
        description="Widest net over tiny net: a number, a list of factors, or one list for each of `stream` and "
        "`inner`. `null` trains the baseline alone.",
    )
    pin: list[str] = Field(default_factory=list, description="Module paths (globs) that keep their width.")
    divisor: int = Field(default=1, ge=1, description="Widths are rounded to multiples of this.")
    alpha: float = Field(default=1.0, gt=0, description="Weight of the wider net's loss.")
    stream_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Phase one, as a part of the epochs: all widths are drawn. After it only inner widths are.",
    )
    sort: bool = Field(
        default=False,
        description="At each epoch start of phase one, move the most important inner channels into the tiny net.",
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


class OptimConfig(Section):
    """SGD with Nesterov momentum; warm-up, then cosine, by iteration. Biases and norms have no weight decay."""

    epochs: int = Field(default=25, ge=1, description="Passes over the training images, for each arm.")
    lr: float = Field(default=0.1, gt=0, description="Highest learning rate, reached after the warm-up.")
    warmup_epochs: float = Field(default=2.0, ge=0, description="Epochs over which the learning rate rises from zero.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum; 0 is plain SGD.")
    weight_decay: float = Field(default=4e-5, ge=0, description="Decay of the weights, but not of biases and norms.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Part of each target spread over all classes.")


class TrainConfig(Section):
    """Everything that decides the result of a run."""

    model: ModelConfig = Field(default=ModelConfig(), description="The net.")
    data: DataConfig = Field(default=DataConfig(), description="The images.")
    netaug: NetAugConfig = Field(default=NetAugConfig(), description="Network Augmentation.")
    optim: OptimConfig = Field(default=OptimConfig(), description="The optimizer and its schedule.")
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
