"""The verbs of the command line. What is heavy is imported when a verb runs, so that ``--help`` answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netaug_fx.errors import InputError, RunError
from netaug_fx.training.config import load_config, setting_names
from netaug_fx.training.recipes import recipe_names

if TYPE_CHECKING:
    from torch import Tensor, nn

app = typer.Typer(
    name="netaug-fx",
    help="Train a tiny net inside a wider one that shares its weights (Network Augmentation), and deploy the tiny net.",
    epilog="Start with: netaug-fx train. Add --debug to any command to see the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_HELP = dict(setting_names())

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Zoo name, timm:NAME, or path/to/file.py:function.")]
WeightsFile = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a .pt state_dict.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Default: the name written in the weights file.")]
Classes = Annotated[int | None, typer.Option("--num-classes", min=1, help="Default: the weights file's, or the net's.")]
Channels = Annotated[int | None, typer.Option("--in-channels", min=1, help="Channels of the images, as above.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, help="Side of the images in pixels, as above.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]


def _setting(flag: str, name: str, **options: Any) -> Any:
    """An option of `train` whose help text is the setting's own description."""
    return typer.Option(flag, help=f"{_HELP[name]} [setting {name}]", show_default=False, **options)


Weights = Annotated[str | None, _setting("--weights", "model.weights", metavar="FILE")]
Teacher = Annotated[str | None, _setting("--teacher", "distill.teacher", metavar="MODEL")]
TeacherWeights = Annotated[str | None, _setting("--teacher-weights", "distill.teacher_weights", metavar="FILE")]
Epochs = Annotated[int | None, _setting("--epochs", "optim.epochs")]
BatchSize = Annotated[int | None, _setting("--batch-size", "data.batch_size")]
Rate = Annotated[float | None, _setting("--lr", "optim.lr")]
Precision = Annotated[str | None, _setting("--precision", "optim.precision", metavar="no|bf16|fp16")]
Seed = Annotated[int | None, _setting("--seed", "seed")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; must not exist. [default: runs/MODEL-DATA-TIME]")]


@app.command(epilog="Example: netaug-fx train --data path/to/images --model mobilenet_v2_tiny --epochs 20")
def train(
    model: Annotated[str | None, _setting("--model", "model.name")] = None,
    data: Annotated[str | None, _setting("--data", "data.name")] = None,
    data_dir: Annotated[str | None, _setting("--data-dir", "data.dir", metavar="DIR")] = None,
    image_size: Annotated[int | None, _setting("--image-size", "data.image_size")] = None,
    ratio: Annotated[
        str | None, _setting("--ratio", "netaug.ratio", metavar="3 | 1,1.8,2.6 | stream=1,2;inner=1,3 | none")
    ] = None,
    weights: Weights = None,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    in_place: Annotated[bool | None, _setting("--in-place", "distill.in_place")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    arms: Annotated[str | None, _setting("--arms", "arms", metavar="ARM[,ARM]")] = None,
    opset: Annotated[int | None, _setting("--opset", "opset")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE|RECIPE",
            help=f"YAML file of settings, or a recipe ({', '.join(recipe_names())}); options above win over it.",
        ),
    ] = None,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue an interrupted or killed run.")
    ] = None,
) -> None:
    """Train a net with and without augmentation; extract, verify and export it; write a report page.

    Without options: a very small net on scikit-learn's handwritten digits, in about a minute.
    """
    from netaug_fx.training import run

    overrides = _given(
        {
            "model.name": model,
            "model.weights": weights,
            "data.name": data,
            "data.dir": data_dir,
            "data.image_size": image_size,
            "data.batch_size": batch_size,
            "netaug.ratio": ratio,
            "distill.teacher": teacher,
            "distill.teacher_weights": teacher_weights,
            "distill.in_place": in_place,
            "optim.epochs": epochs,
            "optim.lr": lr,
            "optim.precision": precision,
            "seed": seed,
            "arms": arms,
            "opset": opset,
        }
    )
    if resume is None:
        folder = run.start(load_config(config, overrides), out)
    elif overrides or config is not None or out is not None:
        raise RunError(
            "--resume continues a run with its own settings and folder; leave the other options away, or start "
            "a new run."
        )
    else:
        folder = run.resume(resume)
    _exit_by_verification(folder)


@app.command(epilog="Example: netaug-fx finetune runs/pretrained/tiny.safetensors --data path/to/images --epochs 50")
def finetune(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A run folder, its .safetensors file, or a .pt state_dict."),
    ],
    model: ModelOption = None,
    data: Annotated[str | None, _setting("--data", "data.name")] = None,
    data_dir: Annotated[str | None, _setting("--data-dir", "data.dir", metavar="DIR")] = None,
    image_size: ImageSize = None,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
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
        Path, typer.Option("--config", metavar="FILE|RECIPE", help="Settings; options above win over them.")
    ] = Path("finetune"),
    out: Out = None,
) -> None:
    """Train a trained net on another data set, with a new classifier, as the paper does after pre-training.

    Continue an interrupted run with: netaug-fx train --resume RUN.
    """
    from netaug_fx.training import run
    from netaug_fx.training.checkpoint import load_weights

    file = checkpoint / "tiny.safetensors" if checkpoint.is_dir() else checkpoint
    _, facts = load_weights(file)
    name = model or facts.get("model")
    if name is None:
        raise InputError(f"{file} does not say which model it is of. Give --model NAME.")
    known = {
        "model.kwargs": facts.get("model_kwargs") if name == facts.get("model") else None,
        "data.image_size": facts.get("image_size"),
        "data.name": "",
    }
    overrides = _given(
        {
            "model.name": name,
            "model.weights": str(file),
            "data.name": data,
            "data.dir": data_dir,
            "data.image_size": image_size,
            "data.batch_size": batch_size,
            "distill.teacher": teacher,
            "distill.teacher_weights": teacher_weights,
            "optim.epochs": epochs,
            "optim.lr": lr,
            "optim.precision": precision,
            "seed": seed,
            "arms": arms,
        }
    )
    settings = load_config(config, overrides, _given(known))
    if not settings.data.name:
        raise InputError("give the data set to fine-tune on: --data NAME, or a folder of images")
    _exit_by_verification(run.start(settings, out))


@app.command(epilog="Example: netaug-fx inspect mobilenet_v2_tiny --html groups.html")
def inspect(
    model: ModelName,
    ratio: Annotated[str, typer.Option(help="Widest over present width, as in `train`.")] = "3",
    pin: Annotated[
        list[str] | None, typer.Option(help="Module paths (globs) that keep their width; repeatable.")
    ] = None,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
    json_file: JsonFile = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also draw the groups on a page.")] = None,
) -> None:
    """Show a model's channel groups: which widths may grow, what they tie together, and what is pinned and why."""
    import netaug_fx

    net, image = _net_and_image(model, num_classes, in_channels, image_size)
    inspection = netaug_fx.inspect(net, parse_ratio(ratio), example_inputs=image, pin=tuple(pin or ()))
    typer.echo(str(inspection))
    _write_json(inspection.to_dict(), json_file)
    _write(html, lambda: inspection.to_html(model))


@app.command(epilog="Example: netaug-fx count mobilenet_v2_tiny --image-size 144")
def count(
    model: ModelName,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
    json_file: JsonFile = None,
) -> None:
    """Count a model's parameters and multiply-adds for one image."""
    from netaug_fx.passes.macs import count as count_macs

    net, image = _net_and_image(model, num_classes, in_channels, image_size)
    result = count_macs(net, None if image is None else image[:1])
    typer.echo(f"{model}: {result.macs:,} MACs, {result.params:,} parameters\n{result.includes}")
    _write_json(result.to_dict(), json_file)


@app.command(epilog="Example: netaug-fx verify runs/demo/tiny.safetensors --model digits_net")
def verify(
    weights: WeightsFile,
    model: ModelOption = None,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
    json_file: JsonFile = None,
) -> None:
    """Prove that trained weights make the very model they are said to be: graph, costs, and ONNX Runtime's outputs."""
    from netaug_fx.passes.verify import verify as verify_net

    net, original, image = _net_from_weights(weights, model, num_classes, in_channels, image_size)
    report = verify_net(net, original, None if image is None else image[:1])
    typer.echo(str(report))
    _write_json(report.to_dict(), json_file)
    if not report.passed:
        raise typer.Exit(1)


@app.command(epilog="Example: netaug-fx export runs/demo/tiny.safetensors --out tiny.onnx --opset 18")
def export(
    weights: WeightsFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The ONNX file to write.")] = Path("tiny.onnx"),
    opset: Annotated[int | None, typer.Option("--opset", min=1, help="Default: the exporter's own.")] = None,
    model: ModelOption = None,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
) -> None:
    """Write a trained net as one ONNX file."""
    from netaug_fx.passes.onnx_export import export_onnx
    from netaug_fx.training.checkpoint import writing

    net, _, image = _net_from_weights(weights, model, num_classes, in_channels, image_size)
    with writing(out):
        export_onnx(net, out, image, opset=opset)
    typer.echo(f"wrote {out}")


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


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line."""
    overrides = {name: value for name, value in options.items() if value is not None}
    if "arms" in overrides:
        overrides["arms"] = overrides["arms"].split(",")
    if "netaug.ratio" in overrides:
        overrides["netaug.ratio"] = parse_ratio(overrides["netaug.ratio"])
    return overrides


def _exit_by_verification(folder: Path) -> None:
    if not json.loads((folder / "report.json").read_text(encoding="utf-8"))["verification"]["passed"]:
        raise typer.Exit(1)


def _net_and_image(
    name: str, num_classes: int | None, in_channels: int | None, image_size: int | None
) -> tuple[nn.Module, Tensor | None]:
    """A net, and two images of the size asked for or that it was made for; None leaves the search to the passes."""
    import torch

    from netaug_fx.training.model_loading import load_model, natural_input_shape

    net = load_model(name, num_classes=num_classes, in_channels=in_channels).eval()
    shape = natural_input_shape(net)
    if image_size is None and shape is None:
        return net, None
    channels = in_channels or (shape[0] if shape else 3)
    side = [image_size, image_size] if image_size else list(shape or ())[1:]
    return net, torch.randn(2, channels, *side, generator=torch.Generator().manual_seed(0))


def _net_from_weights(
    weights: Path, name: str | None, num_classes: int | None, in_channels: int | None, image_size: int | None
) -> tuple[nn.Module, nn.Module, Tensor | None]:
    """The net with the file's weights, the same net without them, and images for it."""
    from netaug_fx.training.checkpoint import load_weights, put_weights
    from netaug_fx.training.model_loading import load_model

    tensors, facts = load_weights(weights)
    name = name or facts.get("model")
    if name is None:
        raise InputError(f"{weights} does not say which model it is of. Give --model NAME.")
    classes = num_classes or facts.get("num_classes")
    channels = in_channels or facts.get("in_channels")
    kwargs = facts.get("model_kwargs", {}) if name == facts.get("model") else {}
    net, original = (
        load_model(name, num_classes=classes, in_channels=channels, kwargs=kwargs).eval() for _ in range(2)
    )
    put_weights(net, tensors, weights, name)
    _, image = _net_and_image(name, classes, channels, image_size or facts.get("image_size"))
    return net, original, image


def _write_json(content: dict[str, Any], file: Path | None) -> None:
    _write(file, lambda: json.dumps(content, indent=1) + "\n")


def _write(file: Path | None, make: Callable[[], str]) -> None:
    """Write what ``make`` gives, where a file was asked for."""
    if file is None:
        return
    from netaug_fx.atomic import write_text
    from netaug_fx.training.checkpoint import writing

    with writing(file):
        write_text(file, make())
    typer.echo(f"wrote {file}")
