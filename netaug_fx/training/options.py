"""Options that verbs of the command line share; settings explain themselves there, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from netaug_fx.training.config import EnlargeConfig, EvolveConfig, RunConfig, TrainConfig, setting_names
from netaug_fx.training.recipes import recipe_names
from netaug_fx.training.settings_page import settings_page

_HELP = {name: text for kind in (EnlargeConfig, EvolveConfig, TrainConfig) for name, text in setting_names(kind)}

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Zoo name, timm:NAME, or path/to/file.py:function.")]
WeightsFile = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a .pt state_dict.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Default: the name written in the weights file.")]
Classes = Annotated[int | None, typer.Option("--num-classes", min=1, help="Default: the weights file's, or the net's.")]
Channels = Annotated[int | None, typer.Option("--in-channels", min=1, help="Channels of the images, as above.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, help="Side of the images in pixels, as above.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]


def setting(flag: str, name: str, **options: Any) -> Any:
    """An option whose help text is the setting's own description."""
    return typer.Option(flag, help=f"{_HELP[name]} [setting {name}]", show_default=False, **options)


def all_settings(kind: type[RunConfig]) -> Any:
    """An option that prints what ``--config`` may hold for this kind of run, and ends the command."""

    def show(asked: bool) -> None:
        if asked:
            typer.echo(settings_page(kind()))
            raise typer.Exit

    return typer.Option(
        "--settings",
        callback=show,
        is_eager=True,
        help="Print all settings with defaults, as a file for --config.",
    )


Weights = Annotated[str | None, setting("--weights", "model.weights", metavar="FILE")]
Teacher = Annotated[str | None, setting("--teacher", "distill.teacher", metavar="MODEL")]
TeacherWeights = Annotated[str | None, setting("--teacher-weights", "distill.teacher_weights", metavar="FILE")]
Ratio = Annotated[str | None, setting("--ratio", "netaug.ratio", metavar="3 | 1,1.8,2.6 | stream=1,2;inner=1,3 | none")]
InPlace = Annotated[bool | None, setting("--in-place/--no-in-place", "distill.in_place")]
Epochs = Annotated[int | None, setting("--epochs", "optim.epochs")]
BatchSize = Annotated[int | None, setting("--batch-size", "data.batch_size")]
Rate = Annotated[float | None, setting("--lr", "optim.lr")]
Precision = Annotated[str | None, setting("--precision", "optim.precision", metavar="no|bf16|fp16")]
Seed = Annotated[int | None, setting("--seed", "seed")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; must not exist. [default: runs/MODEL-DATA-TIME]")]
Resume = Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Continue an interrupted or killed run.")]
ModelSetting = Annotated[str | None, setting("--model", "model.name")]
Data = Annotated[str | None, setting("--data", "data.name")]
DataDir = Annotated[str | None, setting("--data-dir", "data.dir", metavar="DIR")]
ImageSizeSetting = Annotated[int | None, setting("--image-size", "data.image_size")]
Opset = Annotated[int | None, setting("--opset", "opset")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE|RECIPE",
        help=f"YAML file of settings, or a recipe ({', '.join(recipe_names())}); options above win over it.",
    ),
]
