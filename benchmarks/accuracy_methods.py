"""What is compared, and on what: methods and tasks as settings of `TrainConfig`, by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from netaug_fx.training.recipes import read_settings

NETS = "benchmarks/accuracy_nets.py"
"""From the root of the repository, where all cells run."""

BATCH = 128

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One way of training.

    Attributes:
        about: What it is, in one line.
        settings: What it changes in the settings of the task.
        group: ``main`` for the methods that the paper compares, ``ablation`` for variants of Network Augmentation.
        taught: Whether an external teacher, trained before, gives soft targets.
        longer: Steps over those of the baseline.
        as_long_as: The method whose CPU time is spent, in place of ``longer``.
        statistics: Whose running statistics of norms are judged: the target's ``own``, those of all passes
            (``shared``), or these re-estimated from training images before each look (``calibrated``).
    """

    about: str
    settings: Settings = field(default_factory=dict)
    group: Literal["main", "ablation"] = "main"
    taught: bool = False
    longer: int = 1
    as_long_as: str | None = None
    statistics: Literal["own", "shared", "calibrated"] = "own"


def _baseline(about: str, settings: Settings | None = None, **options: Any) -> Method:
    return Method(about, {"arms": ["baseline"], **(settings or {})}, **options)


def _netaug(about: str, settings: Settings | None = None, **options: Any) -> Method:
    return Method(about, {"arms": ["netaug"], **(settings or {})}, **options)


def _ablation(about: str, settings: Settings | None = None, **options: Any) -> Method:
    return _netaug(about, settings, group="ablation", **options)


def _spaced(ratio: float, choices: int) -> list[float]:
    """Factors from 1 to ``ratio`` in ``choices`` equal steps: the paper's r and s."""
    return [1 + (ratio - 1) * k / choices for k in range(choices + 1)]


_RECIPE = read_settings(Path("netaug"))
PAPER = {
    **{f"netaug.{name}": value for name, value in _RECIPE["netaug"].items()},
    "optim.label_smoothing": _RECIPE["optim"]["label_smoothing"],
}

METHODS: dict[str, Method] = {
    "baseline": _baseline("the net as it is"),
    "netaug": _netaug("Network Augmentation with r = 3 and two phases, as by `netaug-fx train --no-in-place`"),
    "kd": _baseline("soft targets of an external teacher of about ten times the parameters", taught=True),
    "netaug+kd": _netaug("both", taught=True),
    "in-place": _netaug(
        "the widest net in the drawn one's place teaches the target: the default of `netaug-fx train`",
        {"distill.in_place": True},
    ),
    "in-place+project": _netaug(
        "and conflicting gradients are projected", {"distill.in_place": True, "distill.project": True}
    ),
    "in-place+kd": _netaug("the widest net and an external teacher", {"distill.in_place": True}, taught=True),
    "dropout=0.1": _baseline("dropout before the classifier", {"model.kwargs.dropout": 0.1}),
    "dropout=0.2": _baseline("dropout before the classifier", {"model.kwargs.dropout": 0.2}),
    "mixup": _baseline("mixup, Beta(0.2, 0.2)", {"optim.mixup": 0.2}),
    "dropblock": _baseline("DropBlock, probability 0.1, squares of 3", {"model.kwargs.dropblock": 0.1}),
    "4x": _baseline("four times the steps", longer=4),
    "equal-time": _baseline("as many steps as fit into the CPU time of `netaug` at the same seed", as_long_as="netaug"),
    "label-smoothing": _baseline("label smoothing 0.1", {"optim.label_smoothing": 0.1}, group="ablation"),
    "netaug+label-smoothing": _ablation("label smoothing 0.1", {"optim.label_smoothing": 0.1}),
    "inner": _ablation("inner widths only, from the first step", {"netaug.phase_two": 1.0}),
    "one-phase": _ablation("all widths to the last step", {"netaug.phase_two": 0.0}),
    **{
        f"r={r:g}": _ablation(f"widest net {r:g} times the target, s = 2", {"netaug.ratio": _spaced(r, 2)})
        for r in (1.5, 2, 3, 4)
    },
    **{f"s={s}": _ablation(f"{s + 1} factors from 1 to 3", {"netaug.ratio": _spaced(3, s)}) for s in (1, 2, 3, 4)},
    "sort": _ablation("sorted inner channels in the first phase", {"netaug.sort": True}),
    "compound": _ablation("inner factors multiply with the stream's", {"netaug.compound": True}),
    "two-draws": _ablation("two wider nets in each step", {"netaug.draws": 2}),
    "alpha=0.5": _ablation("half the weight for the wider net's loss", {"netaug.alpha": 0.5}),
    "alpha=2": _ablation("twice the weight for the wider net's loss", {"netaug.alpha": 2.0}),
    "init=widest": _ablation("first weights drawn for the widest net", {"netaug.initialise": "widest"}),
    "paper": _ablation("all of the paper's settings, label smoothing 0.1 included", PAPER),
    "unsorted": _ablation("`paper` without sorting", {**PAPER, "netaug.sort": False}),
    "shared-statistics": _ablation(
        "both passes update one set of norm statistics, re-estimated before each look", statistics="calibrated"
    ),
    "shared-uncalibrated": _ablation(
        "both passes update one set of norm statistics, which is judged as it is", statistics="shared"
    ),
}

TEACHER = _baseline("the external teacher", longer=2)
"""Trained first where a method is taught; no method of the tables."""


@dataclass(frozen=True)
class Task:
    """What is learnt, with defaults under which a cell takes minutes of one core.

    Attributes:
        about: What it is, in one line.
        settings: Of `TrainConfig`.
        steps: Of the baseline.
        images: Training images of a fixed set, whose epochs are passes over them; None where images are endless, and a
            run is cut into `POINTS` epochs.
        teacher: What the teacher has for ``model``.
        teacher_rate: Its learning rate, about the best that was seen for nets of its kind; it is not tuned.
        sized: Whether the net takes a width and a depth.
        then: Settings of the fine-tuning that follows, in a task of two parts.
        then_steps, then_images: As ``steps`` and ``images``, for that.
    """

    about: str
    settings: Settings
    steps: int
    images: int | None
    teacher: Settings
    teacher_rate: float = 0.1
    sized: bool = True
    then: Settings = field(default_factory=dict)
    then_steps: int = 0
    then_images: int = 0

    @property
    def endless(self) -> bool:
        """Whether there are as many images as are asked for."""
        return self.images is None


POINTS = 10
"""Epochs of a run on endless images, and about as many points of every curve."""

WARMUP = 0.05
"""Part of the steps in which the learning rate rises."""

DIGIT_IMAGES = 1438
"""Training images of scikit-learn's digits: four fifths, rounded class by class."""

_TINY = {"model.name": f"{NETS}:tiny", "model.kwargs.depth": 1, "optim.channels_last": True}
"""In channels-last order cells of depthwise convolutions take a third less CPU time."""

_GLYPHS = {"data.name": "glyphs", "data.batch_size": BATCH, "data.val_samples": 10_000, "data.fresh": True}
FEW_DIGITS = 179
"""Training images where nine tenths are for validation: with four fifths to learn from, every net reaches 98 %."""

_DIGITS = {"data.name": "digits", "data.batch_size": 64}
_FEW_DIGITS = {"data.name": "digits", "data.batch_size": 32, "data.val_fraction": 0.9}
_FOURTEEN = {"data.image_size": 14, "model.kwargs.side": 14}

TASKS: dict[str, Task] = {
    "glyphs": Task(
        "62 characters in 21 fonts, every image new; a net of 10,000 parameters under-fits",
        {**_TINY, **_GLYPHS, **_FOURTEEN, "model.kwargs.width": 10},
        steps=2000,
        images=None,
        teacher={"model.kwargs.width": 21, "model.kwargs.depth": 2},
    ),
    "fonts": Task(
        "character and font together: 1,302 fine-grained classes",
        {**_TINY, **_GLYPHS, **_FOURTEEN, "model.kwargs.width": 8, "data.label": "character+font"},
        steps=3000,
        images=None,
        teacher={"model.kwargs.width": 40, "model.kwargs.depth": 2},
        teacher_rate=0.4,
    ),
    "digits": Task(
        "scikit-learn's digits at 8 pixels; 360 validation images, another split for each seed",
        {**_TINY, **_DIGITS, "data.image_size": 8, "model.kwargs.side": 8, "model.kwargs.width": 4},
        steps=3000,
        images=DIGIT_IMAGES,
        teacher={"model.kwargs.width": 9, "model.kwargs.depth": 2},
    ),
    "small": Task(
        "ResNet-18 on 2,000 fixed glyphs, which it over-fits; widths up to twice its own",
        {
            "model.name": f"{NETS}:resnet18",
            **_GLYPHS,
            "data.fresh": False,
            "data.val_samples": 4000,
            "data.batch_size": 64,
            "data.image_size": 14,
            "netaug.ratio": 2.0,
        },
        steps=620,
        images=2000,
        teacher={"model.name": f"{NETS}:resnet34"},
        teacher_rate=0.025,
        sized=False,
    ),
    "transfer": Task(
        "trained on glyphs by the method, then fine-tuned plainly on a tenth of the digits, all at 14 pixels",
        {**_TINY, **_GLYPHS, **_FOURTEEN, "model.kwargs.width": 8},
        steps=2000,
        images=None,
        teacher={"model.kwargs.width": 18, "model.kwargs.depth": 2},
        then={**_TINY, **_FEW_DIGITS, **_FOURTEEN, "model.kwargs.width": 8, "optim.lr": 0.05, "arms": ["baseline"]},
        then_steps=200,
        then_images=FEW_DIGITS,
    ),
}
