"""Which cells there are: a cell is a task in some regime, a method, a learning rate and a seed, as settings."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.accuracy_methods import METHODS, POINTS, TASKS, TEACHER, WARMUP, Method, Task
from benchmarks.rows import Row
from netaug_fx.errors import InputError
from netaug_fx.training.config import TrainConfig, load_config

FIRST_RATES = (0.2, 0.4)
LOWEST_RATE, HIGHEST_RATE = 0.0125, 6.4
"""Learning rates that are tried for each method: the first two, then on by factors of two while it gets better."""

FIRST_TUNING_SEED = 1000
"""Seeds from here on choose learning rates; the reported ones are below."""

TEACHER_SEED = 999
_LABELS_ALONE = {"distill.in_place": False}  # wider nets teach in the methods that say so, and in no others

Role = Literal["teacher", "tuning", "report"]


@dataclass(frozen=True)
class Regime:
    """A task, and what of its defaults is changed for all methods.

    Attributes:
        task: Its name.
        steps: Of the baseline.
        width, depth: Of the net.
        size: Side of the images in pixels.
        images: Of a fixed training set.
        extra: More settings, by dotted name; a method's own win.
        device: ``cpu`` or ``auto``.
    """

    task: str
    steps: int | None = None
    width: int | None = None
    depth: int | None = None
    size: int | None = None
    images: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    device: str = "cpu"

    @property
    def label(self) -> str:
        """The task and what is changed: ``glyphs steps=500 width=4``."""
        named = ("steps", "width", "depth", "size", "images")
        parts = [f"{name}={getattr(self, name)}" for name in named if getattr(self, name) is not None]
        parts += [f"{name}={json.dumps(value)}" for name, value in self.extra]
        return " ".join([self.task, *parts, *(["device=auto"] if self.device != "cpu" else [])])


@dataclass(frozen=True)
class Cell:
    """One training run, or two of which the second starts from the weights of the first.

    Attributes:
        config: Of the part that the method is used in.
        then: Of the fine-tuning after it, if there is one.
        steps: Of the first part.
        statistics: See `Method`.
        weights: Where the trained weights are kept, if they are.
    """

    regime: Regime
    method: str
    role: Role
    lr: float
    seed: int
    steps: int
    config: TrainConfig
    then: TrainConfig | None = None
    statistics: str = "own"
    weights: Path | None = None

    @property
    def name(self) -> str:
        """Identifies it among the rows."""
        return f"{self.regime.label} {self.method} lr={self.lr:g} seed={self.seed}"

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The full settings of each part; of a teacher's weights the file's name, which says what it was trained by."""
        parts = [part.model_dump(mode="json") for part in (self.config, self.then) if part is not None]
        for part in parts:
            if part["distill"]["teacher_weights"] is not None:
                part["distill"]["teacher_weights"] = Path(part["distill"]["teacher_weights"]).name
        return parts

    @property
    def key(self) -> str:
        """A file name for what the cell keeps while it runs."""
        return hashlib.sha256(json.dumps([self.name, self.settings], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """What is to be known.

    Attributes:
        methods: Their names.
        rates: Learning rates, the same for all; None for each method's own best.
        seeds: How many are reported.
        tuning_seeds: How many choose the learning rates.
        cache: Folder for teachers and for what running cells keep.
    """

    regime: Regime
    methods: tuple[str, ...]
    rates: tuple[float, ...] | None
    seeds: int
    tuning_seeds: int
    cache: Path


# -- settings ------------------------------------------------------------------------------------------------------


def run_length(steps: int, images: int | None, batch: int) -> tuple[int, int, int]:
    """Epochs, images of an epoch, and steps in all, as near to ``steps`` as whole epochs come.

    Raises:
        InputError: the images do not fill one batch.
    """
    if images is None:
        epochs = min(POINTS, steps)
        each = round(steps / epochs)
        return epochs, each * batch, epochs * each
    each = images // batch
    if each == 0:
        raise InputError(f"--train-images {images} do not fill one batch of {batch}; give more, or data.batch_size=")
    epochs = max(1, round(steps / each))
    return epochs, images, epochs * each


def _regime_settings(regime: Regime, task: Task) -> dict[str, Any]:
    """The task's settings with the regime's changes.

    Raises:
        InputError: a change does not apply to the task.
    """
    settings = dict(task.settings)
    if (regime.width is not None or regime.depth is not None) and not task.sized:
        raise InputError(f"--net-width and --net-depth do not apply to the task {regime.task!r}: its net has one size")
    if regime.images is not None and settings["data.name"] != "glyphs":
        raise InputError(f"--train-images does not apply to the task {regime.task!r}: its images are what they are")
    settings |= {f"model.kwargs.{n}": getattr(regime, n) for n in ("width", "depth") if getattr(regime, n) is not None}
    if regime.size is not None:
        settings["data.image_size"] = regime.size
        if task.sized:
            settings["model.kwargs.side"] = regime.size
    if regime.images is not None:
        settings["data.fresh"] = False
    return settings | dict(regime.extra) | {"device": regime.device, "threads": 1}


def make_cell(
    regime: Regime, name: str, role: Role, lr: float, seed: int, *, cache: Path, longer: float | None = None
) -> Cell:
    """The cell with all of its settings.

    Args:
        longer: Steps over those of the baseline, in place of the method's own factor.

    Raises:
        InputError: a setting is unknown, out of range, or does not apply to the task.
    """
    task, method = TASKS[regime.task], TEACHER if role == "teacher" else METHODS[name]
    settings = _LABELS_ALONE | _regime_settings(regime, task) | dict(method.settings)
    if role == "teacher":
        settings |= _teacher_net(regime, task)
    if method.taught:
        teacher = teacher_cell(regime, cache)
        model = teacher.config.model
        settings |= {
            "distill.teacher": model.name,
            "distill.teacher_kwargs": model.kwargs,
            "distill.teacher_weights": str(teacher.weights),
        }
    images = regime.images or task.images
    batch = settings["data.batch_size"]
    _, _, plain = run_length(regime.steps or task.steps, images, batch)
    epochs, each, steps = run_length(round(plain * (method.longer if longer is None else longer)), images, batch)
    settings |= {"optim.epochs": epochs, "optim.warmup_epochs": WARMUP * epochs, "optim.lr": lr, "seed": seed}
    if settings["data.name"] == "glyphs":
        settings["data.train_samples"] = each
    config, then = load_config(TrainConfig, None, settings), None
    if task.then and role != "teacher":
        then = load_config(TrainConfig, None, _second_settings(regime, task, settings))
    cell = Cell(regime, name, role, lr, seed, steps, config, then, method.statistics)
    return cell if role != "teacher" else _kept(cell, cache)


def _second_settings(regime: Regime, task: Task, first: Mapping[str, Any]) -> dict[str, Any]:
    settings = _LABELS_ALONE | dict(task.then)
    epochs, _, _ = run_length(task.then_steps, task.then_images, settings["data.batch_size"])
    same = ("data.image_size", "model.name", "seed", "device", "threads")
    settings |= {name: value for name, value in first.items() if name in same or name.startswith("model.kwargs.")}
    return settings | {"optim.epochs": epochs, "optim.warmup_epochs": WARMUP * epochs}


def _teacher_net(regime: Regime, task: Task) -> dict[str, Any]:
    """The teacher's net: where the tiny net has another width than the task's, in proportion."""
    net = dict(task.teacher)
    if regime.width is not None:
        usual = task.settings["model.kwargs.width"]
        net["model.kwargs.width"] = round(net["model.kwargs.width"] * regime.width / usual)
    return net


def teacher_cell(regime: Regime, cache: Path) -> Cell:
    """The teacher of a regime."""
    return make_cell(regime, "teacher", "teacher", TASKS[regime.task].teacher_rate, TEACHER_SEED, cache=cache)


def _kept(cell: Cell, cache: Path) -> Cell:
    return Cell(**{**vars(cell), "weights": cache / "teachers" / f"{cell.key}.safetensors"})


# -- what is there, what is missing --------------------------------------------------------------------------------


def best_rate(rows: Sequence[Row], name: str) -> float | None:
    """The learning rate at which a method did best in tuning, of those that were tried with the most seeds."""
    seeds = {row["seed"] for row in rows if row["method"] == name and row["role"] == "tuning"}
    for count in range(len(seeds), 0, -1):
        if found := _tuned(rows, name, sorted(seeds)[:count]):
            return max(found, key=lambda rate: found[rate])
    return None


def rates_to_try(found: Mapping[float, float]) -> list[float]:
    """The next learning rates: the best one's neighbours, until it is better than both.

    Args:
        found: Accuracy by rate, of those that were tried.
    """
    if not found:
        return list(FIRST_RATES)
    best = max(found, key=lambda rate: found[rate])
    return [rate for rate in (best / 2, 2 * best) if rate not in found and LOWEST_RATE <= rate <= HIGHEST_RATE]


def _tuned(rows: Sequence[Row], name: str, seeds: Sequence[int]) -> dict[float, float]:
    """Mean accuracy of a method by rate, of the rates that all these seeds ran; one that diverged counts as zero."""
    by_rate: dict[float, dict[int, float]] = {}
    for row in rows:
        if row["method"] == name and row["role"] == "tuning" and row["seed"] in seeds:
            by_rate.setdefault(row["lr"], {})[row["seed"]] = row.get("val_accuracy") or 0.0
    return {rate: statistics.fmean(own.values()) for rate, own in by_rate.items() if len(own) == len(seeds)}


def time_ratio(rows: Sequence[Row], method: str, seed: int) -> float | None:
    """CPU seconds of a step of ``method`` over those of the baseline at one seed, None where one was not measured."""

    def of(name: str) -> list[float]:
        own = (row for row in rows if row["method"] == name and row["seed"] == seed and "error" not in row)
        return [row["cpu_seconds"] / row["steps"] for row in own]

    ours, plain = of(method), of("baseline")
    return statistics.fmean(ours) / statistics.fmean(plain) if ours and plain else None


def cells(request: Request, rows: Sequence[Row]) -> Iterator[Cell]:
    """All cells that can be named by what is known: learning rates and times of some follow from rows of others.

    Args:
        rows: Those of the regime that still hold.
    """
    methods = {name: METHODS[name] for name in request.methods}
    taught = any(method.taught for method in methods.values())
    ready = not taught
    if taught:
        teacher = teacher_cell(request.regime, request.cache)
        yield teacher
        ready = any(row["name"] == teacher.name for row in rows)
    able = {name: method for name, method in methods.items() if ready or not method.taught}
    reported: list[tuple[int, str, Method, float]] = []
    for name, method in able.items():
        rates = request.rates
        if rates is None:
            tuning = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + request.tuning_seeds)
            found = _tuned(rows, name, tuning)
            missing = rates_to_try(found)
            for seed in tuning:
                yield from _at(request, rows, name, method, "tuning", seed, sorted([*found, *missing]))
            rates = () if missing else (max(found, key=lambda rate: found[rate]),)
        reported += [(seed, name, method, rate) for seed in range(request.seeds) for rate in rates]
    # Seed by seed, so that a table of few seeds is complete early.
    for seed, name, method, rate in sorted(reported, key=lambda item: item[0]):
        yield from _at(request, rows, name, method, "report", seed, (rate,))


def _at(
    request: Request, rows: Sequence[Row], name: str, method: Method, role: Role, seed: int, rates: Sequence[float]
) -> Iterator[Cell]:
    longer = None if method.as_long_as is None else time_ratio(rows, method.as_long_as, seed)
    if method.as_long_as is None or longer is not None:
        for rate in rates:
            yield make_cell(request.regime, name, role, rate, seed, cache=request.cache, longer=longer)


def outlook(request: Request) -> dict[str, tuple[int, int]]:
    """For each method, how many cells it will have in all, and about how many steps each."""
    count = (len(FIRST_RATES) + 2) * request.tuning_seeds + request.seeds
    if request.rates is not None:
        count = len(request.rates) * request.seeds
    task = TASKS[request.regime.task]
    steps = request.regime.steps or task.steps
    found = {name: (count, steps * METHODS[name].longer + task.then_steps) for name in request.methods}
    if any(METHODS[name].taught for name in request.methods):
        found["teacher"] = (1, steps * TEACHER.longer)
    return found


def still_holds(row: Row, cell: Cell) -> bool:
    """Whether a row is of the cell's settings."""
    old, new = row["settings"], cell.settings
    if cell.method in METHODS and METHODS[cell.method].as_long_as is not None:
        old, new = _without_length(old), _without_length(new)
    return same_settings(old, new)


def _without_length(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings but for what follows from measured times, which would differ a little each time."""
    length = ("epochs", "warmup_epochs", "train_samples")

    def rest(section: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in section.items() if name not in length}

    return [{**part, "optim": rest(part["optim"]), "data": rest(part["data"])} for part in parts]


def same_settings(old: Any, new: Any) -> bool:
    """Whether settings agree where both have a value: a setting that came later had its default."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(same_settings(old[name], new[name]) for name in old.keys() & new.keys())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(same_settings(a, b) for a, b in zip(old, new, strict=True))
    return bool(old == new)
