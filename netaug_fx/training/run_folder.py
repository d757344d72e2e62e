"""What all runs share: the folder with its settings and metrics, and what runs the loop."""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils.operations import broadcast_object_list
from torch import Tensor, nn

from netaug_fx.atomic import write_text
from netaug_fx.errors import DataError, ExportError, InputError, RunError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.onnx_export import export_onnx
from netaug_fx.training.checkpoint import writing
from netaug_fx.training.config import Config, RunConfig, load_config
from netaug_fx.training.data import DataConfig, Problem, own_side
from netaug_fx.training.model_loading import load_model, natural_input_shape
from netaug_fx.training.recipes import read_settings
from netaug_fx.training.transfer import cuts_of

Images = TypeVar("Images", bound=Problem)
Ready = tuple[Config, Images, Path, Any]
"""What a run works with: its settings, resolved; the images; its folder; and accelerate's ``Accelerator``."""


def new_run(config: Config, folder: Path | None, prepare: Callable[[Config], Images]) -> Ready[Config, Images]:
    """Makes the folder of a new run, once all that can be wrong with the request has been looked for.

    Args:
        config: The settings.
        folder: Where; None for the default.
        prepare: Loads the images, and raises what is wrong with the settings.

    Raises:
        RunError: the folder exists or cannot be written.
        NetAugError: what ``prepare`` found.
    """
    accelerator = accelerator_for(config)
    folder = free_folder(config, folder)
    config = resolved(config)
    task = prepare(config)
    make_folder(folder, config, accelerator)
    return config, task, folder, accelerator


def old_run(folder: Path, kind: type[Config], prepare: Callable[[Config], Images]) -> Ready[Config, Images]:
    """Makes the folder of an interrupted or killed run ready to go on; takes and raises what ``new_run`` does.

    Raises:
        RunError: the folder is no run, or one of another verb.
    """
    config = settings_of(folder, kind)
    accelerator = accelerator_for(config)
    tidy_folder(folder, accelerator)
    return config, prepare(config), folder, accelerator


def default_folder(config: RunConfig) -> Path:
    """``runs/<model>-<data>-<timestamp>``, with a number at the end where two runs start in one second."""
    words = [config.model.name.rsplit(":", 1)[-1], Path(config.data.name).resolve().name]
    slug = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", word) for word in words)
    base = Path("runs") / f"{slug}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = (base.with_name(f"{base.name}-{n}") if n else base for n in range(1000))
    return next(folder for folder in candidates if not folder.exists())


def free_folder(config: RunConfig, folder: Path | None) -> Path:
    """The folder that was asked for, or the default one; the same for all processes.

    Raises:
        RunError: it exists.
    """
    # Every process has the clock of its own in the default name; the first one's counts.
    (folder,) = broadcast_object_list([folder or default_folder(config)])
    if folder.exists():
        raise RunError(
            f"run folder {folder} exists, and nothing is overwritten. Give another --out, or continue that run with "
            f"--resume {folder}."
        )
    return folder


def make_folder(folder: Path, config: RunConfig, accelerator: Any) -> None:
    """Makes the folder of a new run, with its settings."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with writing(folder):
            (folder / "checkpoints").mkdir(parents=True)
            write_text(folder / "config.yaml", config.to_yaml())
    accelerator.wait_for_everyone()


def settings_of(folder: Path, kind: type[Config]) -> Config:
    """The settings of a run that is to go on.

    Raises:
        RunError: the folder is no run, or one of another verb.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise RunError(
            f"--resume {folder}: this is no run folder, it has no config.yaml. Give a folder that `netaug-fx train`, "
            "`evolve` or `enlarge` wrote."
        )
    sections = read_settings(file)  # all of them are in the file
    if not {"model", "data", "optim"} <= sections.keys():
        raise RunError(
            f"--resume {folder}: its config.yaml lacks the settings that the run wrote there. Bring it back, or start "
            "a new run."
        )
    verb = next((name for name in ("evolve", "enlarge") if name in sections), "train")
    if verb != kind.verb:
        raise RunError(
            f"--resume {folder}: this is a run of `netaug-fx {verb}`. Continue it with netaug-fx {verb} "
            f"--resume {folder}."
        )
    return load_config(kind, file)


def tidy_folder(folder: Path, accelerator: Any) -> None:
    """Makes the folder of a run ready to go on: a kill while writing leaves the temporary file behind."""
    if accelerator.is_main_process:
        with writing(folder):
            (folder / "checkpoints").mkdir(exist_ok=True)
            for leftover in folder.rglob(".*.tmp*"):
                leftover.unlink()
    accelerator.wait_for_everyone()


def accelerator_for(config: RunConfig) -> Any:
    """What runs the loop; without a device for it, accelerate joins several processes only if told to use the CPU."""
    no_device = config.device == "cpu" or not torch.accelerator.is_available()
    if config.optim.precision == "fp16" and no_device:
        raise InputError(
            "setting 'optim.precision' (--precision): fp16 needs a GPU, and there is none; take bf16, or no"
        )
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", config.optim.precision):
        raise InputError(
            f"the launcher asks for mixed precision {asked!r}, and setting 'optim.precision' for "
            f"{config.optim.precision!r}: give --precision {asked}, or launch without"
        )
    accelerator = Accelerator(cpu=no_device, mixed_precision=config.optim.precision)
    accelerator.gradient_accumulation_steps = 1  # the loop divides by itself, whatever the launcher's environment says
    return accelerator


def resolved(config: Config) -> Config:
    """The settings with the size of a folder's images: as asked for, else what the net was made for, or 64."""
    data = config.data
    if data.image_size is not None or own_side(data.name) is not None or not isinstance(data, DataConfig):
        return config
    # Classes and channels are not known yet, and any will do to ask for the side.
    net = load_model(config.model.name, num_classes=10, in_channels=3, kwargs=config.model.kwargs)
    shape = natural_input_shape(net)
    sized = data.model_copy(update={"image_size": shape[-1] if shape else 64})
    return config.model_copy(update={"data": sized})


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch compute on that many CPU threads; None leaves the number alone."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def weights_metadata(config: RunConfig, task: Problem, *cuts: dict[str, Any]) -> dict[str, Any]:
    """What someone with only the weights file needs to build the net and feed it.

    ``cuts`` are those that the run itself made, beside those of the weights that it started from.
    """
    return {
        "model": config.model.name,
        "model_kwargs": config.model.kwargs,
        "cuts": [*cuts_of(config.model), *cuts],
        "num_classes": len(task.classes),
        "in_channels": task.channels,
        "image_size": task.image_size,
        "classes": list(task.classes),
        "mean": list(task.mean),
        "std": list(task.std),
    }


def check_request(config: RunConfig, task: Problem, net: nn.Module, batches: int) -> None:
    """Tries what a run will do, at its end too, with a net before it is trained: found now, not after hours.

    Args:
        config: The settings.
        task: The images.
        net: The net.
        batches: How many an epoch has, for all processes together.

    Raises:
        DataError: the images do not make a step.
        ExportError: the opset that was asked for cannot be had.
        InputError: the net does not run in the memory order that was asked for.
    """
    processes: int = PartialState().num_processes  # type: ignore[has-type]
    batches //= processes
    if batches < config.optim.accumulate:
        raise DataError(
            f"data set {task.name}: an epoch has {batches} batches for each process, which do not make a step of "
            f"{config.optim.accumulate}. Lower optim.accumulate or data.batch_size."
        )
    if config.optim.channels_last:
        _require_channels_last(net, task, config.model.name)
    if config.opset is not None:
        with tempfile.TemporaryDirectory() as scratch:
            export_onnx(net.eval(), Path(scratch) / "trial.onnx", (task.example(1),), opset=config.opset)


def _require_channels_last(net: nn.Module, task: Problem, name: str) -> None:
    tried = copy_model(net).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            tried(task.example())
    except RuntimeError as error:
        raise InputError(
            f"optim.channels_last: model {name} does not run in channels-last memory order: {error}. Leave the setting "
            "out, or write flatten or reshape where its forward has view."
        ) from error


def export_net(net: nn.Module, file: Path, image: Tensor, opset: int | None) -> str | None:
    """Writes a net as ONNX, and returns why there is no file where it cannot be written in any opset.

    Raises:
        ExportError: it cannot be written in the opset that was asked for.
        RunError: the disk is full, or the like.
    """
    try:
        with writing(file):
            export_onnx(net, file, (image,), opset=opset)
    except ExportError as error:
        if opset is not None:
            raise
        return str(error)
    return None


def write_metrics(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], folder: Path) -> None:
    """Write ``metrics.csv`` anew: one row for each arm and epoch."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with writing(folder / "metrics.csv"):
        write_text(folder / "metrics.csv", stream.getvalue())
