"""The verbs that train: ``train``, ``evolve`` and ``finetune``. What is heavy is imported when one runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from netaug_fx.errors import InputError, RunError
from netaug_fx.training.config import FLAGS, EvolveConfig, RunConfig, TrainConfig, load_config
from netaug_fx.training.options import (
    BatchSize,
    ConfigFile,
    Data,
    DataDir,
    Epochs,
    ImageSize,
    ImageSizeSetting,
    InPlace,
    ModelOption,
    ModelSetting,
    Opset,
    Out,
    Precision,
    Rate,
    Ratio,
    Resume,
    Seed,
    Teacher,
    TeacherWeights,
    Weights,
    all_settings,
    setting,
)
from netaug_fx.training.recipes import read_settings, recipe_names


def train(
    task: Annotated[str | None, setting("--task", "task", metavar="classify|detect")] = None,
    model: ModelSetting = None,
    data: Data = None,
    data_dir: DataDir = None,
    image_size: ImageSizeSetting = None,
    ratio: Ratio = None,
    weights: Weights = None,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    in_place: InPlace = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    arms: Annotated[str | None, setting("--arms", "arms", metavar="ARM[,ARM]")] = None,
    opset: Opset = None,
    config: ConfigFile = None,
    out: Out = None,
    resume: Resume = None,
    settings: Annotated[bool, all_settings(TrainConfig)] = False,
) -> None:
    """Train a net with and without augmentation; extract, verify and export it; write a report page.

    Without options: a very small net on scikit-learn's handwritten digits, in about a minute. With --task detect: a
    very small detector on rendered scenes of digits, in minutes; --data is then scenes, coco or voc, --model a
    detector such as yolo_mobilenet_v2_tiny, and --image-size 96 for scenes and 416 for photographs unless it is given.
    Teachers (--teacher, --teacher-weights, --in-place) and the recipes of --config are for classifiers.
    """
    overrides = given(locals())
    if resume is not None:
        resume_alone(overrides, config, out)
    settings_file = config if resume is None else resume / "config.yaml"
    run, kind = _run_of(overrides.get("task") or _task_in(settings_file))
    if kind is not TrainConfig and str(config) in recipe_names():
        raise InputError(
            f"--config {config} is a recipe for classifiers; for --task detect, give a YAML file of settings"
        )
    exit_by_verification(run.start(load_config(kind, config, overrides), out) if resume is None else run.resume(resume))


def _task_in(file: Path | None) -> Any:
    """What a file of settings says is learnt."""
    missing = file is None or (file.name == "config.yaml" and not file.exists())
    return TrainConfig().task if missing else read_settings(Path(str(file))).get("task", TrainConfig().task)


def _run_of(task: Any) -> tuple[Any, type[RunConfig]]:
    """The module that runs a task, with the kind of its settings.

    Raises:
        InputError: there is no such task.
    """
    if task == "classify":
        from netaug_fx.training import run

        return run, TrainConfig
    if task == "detect":
        from netaug_fx.training.detection import run as detection_run
        from netaug_fx.training.detection.detect_config import DetectConfig

        return detection_run, DetectConfig
    raise InputError(f"setting 'task' (--task): found {task!r}; expected classify or detect")


def evolve(
    model: ModelSetting = None,
    data: Data = None,
    data_dir: DataDir = None,
    image_size: ImageSizeSetting = None,
    keep: Annotated[float | None, setting("--keep", "evolve.keep")] = None,
    method: Annotated[str | None, setting("--method", "evolve.method", metavar="kels|wels")] = None,
    generations: Annotated[int | None, setting("--generations", "evolve.generations")] = None,
    loss: Annotated[str | None, setting("--loss", "evolve.loss", metavar="labels|class_wise|triplet")] = None,
    control: Annotated[bool | None, setting("--control/--no-control", "evolve.control")] = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    opset: Opset = None,
    config: ConfigFile = None,
    out: Out = None,
    resume: Resume = None,
    settings: Annotated[bool, all_settings(EvolveConfig)] = False,
) -> None:
    """Train a net in generations that hand on a part of it (Knowledge Evolution), and cut out the slim net.

    Without options: a ResNet-20 on scikit-learn's handwritten digits, in minutes.
    """
    overrides = given(locals())
    from netaug_fx.training import evolve_run

    if resume is None:
        folder = evolve_run.start(load_config(EvolveConfig, config, overrides), out)
    else:
        resume_alone(overrides, config, out)
        folder = evolve_run.resume(resume)
    exit_by_verification(folder)


def finetune(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A run folder, its .safetensors file, or a .pt state_dict."),
    ],
    model: ModelOption = None,
    data: Data = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    ratio: Ratio = None,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    in_place: InPlace = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="ARM[,ARM]", help="`baseline` (plain fine-tuning), `netaug`, or both."),
    ] = None,
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            metavar="FILE|RECIPE",
            help="Settings; options above win over them. A file without `extends` stands on the recipe `finetune`.",
        ),
    ] = Path("finetune"),
    out: Out = None,
) -> None:
    """Train a trained net on another data set, with a new classifier, as the paper does after pre-training.

    Continue an interrupted run with: netaug-fx train --resume RUN.
    """
    overrides = given(locals())
    from netaug_fx.training import run
    from netaug_fx.training.checkpoint import load_weights

    file = _delivered(checkpoint) if checkpoint.is_dir() else checkpoint
    _, facts = load_weights(file)
    name = model or facts.get("model")
    if name is None:
        raise InputError(f"{file} does not say which model it is of. Give --model NAME.")
    known = {
        "model.kwargs": facts.get("model_kwargs") if name == facts.get("model") else None,
        "data.image_size": facts.get("image_size"),
        "data.name": "",
    }
    defaults = {name: value for name, value in known.items() if value is not None}
    overrides |= {"model.name": name, "model.weights": str(file)}
    settings = load_config(TrainConfig, config, overrides, defaults, base="finetune")
    if not settings.data.name:
        raise InputError("give the data set to fine-tune on: --data NAME, or a folder of images")
    exit_by_verification(run.start(settings, out))


def parse_ratio(text: str) -> Any:
    """``3``, ``1,1.8,2.6``, ``stream=1,1.8;inner=1,1.6,2.2`` or ``none`` as `augment` takes it.

    Raises:
        InputError: the text is none of these.
    """
    if text.strip().lower() in ("none", "null"):
        return None
    try:
        if "=" in text:
            pairs = (part.split("=", 1) for part in text.split(";") if part.strip())
            return {kind.strip(): [float(factor) for factor in factors.split(",")] for kind, factors in pairs}
        factors = [float(factor) for factor in text.split(",")]
    except ValueError:
        raise InputError(
            f"--ratio {text!r} is no ratio. Give a number (3), factors (1,1.8,2.6), factors by kind "
            "(stream=1,1.8,2.6;inner=1,1.6,2.2,2.8), or none for the baseline alone."
        ) from None
    return factors[0] if len(factors) == 1 else factors


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line: a verb's arguments are called as their flags are."""
    named = {name: options.get(flag.removeprefix("--").replace("-", "_")) for name, flag in FLAGS.items()}
    overrides = {name: value for name, value in named.items() if value is not None}
    for name in {"arms", "enlarge.dims"} & overrides.keys():
        overrides[name] = overrides[name].split(",")
    if "netaug.ratio" in overrides:
        overrides["netaug.ratio"] = parse_ratio(overrides["netaug.ratio"])
    return overrides


def _delivered(run: Path) -> Path:
    """The weights that a run delivers: of `train`, or of `evolve`, whose dense net is all there is with `wels`."""
    names = [f"{name}.safetensors" for name in ("tiny", "slim", "dense")]
    return next((run / name for name in names if (run / name).is_file()), run / names[0])


def exit_by_verification(folder: Path) -> None:
    """Ends the command with code 1 where the run's verification failed."""
    if not json.loads((folder / "report.json").read_text(encoding="utf-8"))["verification"]["passed"]:
        raise typer.Exit(1)


def resume_alone(overrides: dict[str, Any], config: Path | None, out: Path | None) -> None:
    """Refuses settings beside ``--resume``.

    Raises:
        RunError: there are some.
    """
    if overrides or config is not None or out is not None:
        raise RunError(
            "--resume continues a run with its own settings and folder; leave the other options away, or start "
            "a new run."
        )
