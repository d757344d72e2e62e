"""The whole main job: train the arms, extract the tiny net, export it, verify it, and write the report.

A run folder holds::

    config.yaml           the resolved settings
    metrics.csv           one row for each arm and epoch
    checkpoints/ARM.pt    to resume from
    checkpoints/ARM.best.safetensors  the tiny net at its best epoch
    tiny.safetensors      the tiny net's weights (of the arm ``netaug`` where it was trained)
    baseline.safetensors  the baseline's weights
    tiny.onnx             the tiny net for other runtimes
    report.json           what the page shows, for programs
    report.html           one page that needs no network
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.passes.macs import count
from netaug_fx.passes.verify import verify
from netaug_fx.supernet import control
from netaug_fx.training.arm import Arm, build_net
from netaug_fx.training.checkpoint import load_weights, put_weights, save_weights, writing
from netaug_fx.training.config import TrainConfig
from netaug_fx.training.data import Task, load_task
from netaug_fx.training.engine import train_arm
from netaug_fx.training.facts import no_onnx_line
from netaug_fx.training.interrupt import StopRequest
from netaug_fx.training.methods import method_of
from netaug_fx.training.model_loading import check_outputs
from netaug_fx.training.progress import make_progress
from netaug_fx.training.report import ArmResult, make_report, verdict, write_report
from netaug_fx.training.run_folder import (
    check_request,
    export_net,
    new_run,
    old_run,
    torch_threads,
    weights_metadata,
    write_metrics,
)
from netaug_fx.training.teacher import load_teacher
from netaug_fx.training.tracking import Tracking, check_tracking

METRICS = (
    "arm",
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "augmented_loss",
    "val_loss",
    "val_accuracy",
)


def start(config: TrainConfig, folder: Path | None = None) -> Path:
    """Train in a new folder and return it.

    Raises:
        RunError: the folder exists, cannot be written, the loss diverged, or the run was interrupted.
        InputError: model or settings cannot be used.
        DataError: the images cannot be used.
        ExportError: the opset cannot be had.
    """
    return _work(*new_run(config, folder, prepare))


def resume(folder: Path) -> Path:
    """Continue a run that was interrupted or killed; a finished one only gets its last files written again.

    Raises:
        RunError: the folder is no run of ``netaug-fx train``.
        CheckpointError: a checkpoint in it cannot be used.
    """
    return _work(*old_run(folder, TrainConfig, prepare))


def prepare(config: TrainConfig) -> Task:
    """Load the images, try the net on two of them, and where an opset is asked for, try to export it.

    Raises:
        InputError: the net does not exist, cannot take the images, or its outputs do not match the classes; or a
            setting of the augmentation does not fit it.
        DataError: the images cannot be used.
        ExportError: the opset cannot be had; found here, before hours of training.
    """
    check_tracking(config.tracking)
    task = load_task(config.data, config.seed)
    net = build_net(config, task, "baseline")
    check_outputs(net, task.example(), len(task.classes), config.model.name)
    if "netaug" in config.active_arms:
        build_net(config, task, "netaug")
    load_teacher(config.distill, task, torch.device("cpu"))
    check_request(config, task, net)
    return task


def _work(config: TrainConfig, task: Task, folder: Path, accelerator: Any) -> Path:
    """Train the arms one after the other, then finish the run on the main process."""
    arms: list[Arm] = []
    metadata = weights_metadata(config, task)
    threads = config.threads or (1 if config.data.name == "digits" else None)
    with torch_threads(threads), make_progress(main_process=accelerator.is_main_process) as progress:
        progress.message(
            f"{config.model.name} on {task.name}: {len(task.train)} training and {len(task.val)} "
            f"validation images, {len(task.classes)} classes; run folder {folder}"
        )
        tracking = Tracking(config.tracking, folder, config.model_dump(mode="json"), accelerator.is_main_process)

        def epoch_done() -> None:
            arms[-1].save_best(metadata)
            tracking.log(arms[-1].name, arms[-1].history[-1])
            if accelerator.is_main_process:
                write_history(arms, folder)

        with StopRequest() as stop, closing(tracking):
            teacher = load_teacher(config.distill, task, accelerator.device)
            for name in config.active_arms:
                net = build_net(config, task, name)
                method = method_of(net, config)
                arms.append(Arm(name, config, task, accelerator, net, folder / "checkpoints", method, teacher))
                arms[-1].restore()
                train_arm(arms[-1], progress, stop, on_epoch=epoch_done)
        if accelerator.is_main_process:
            progress.message("extracting, exporting and verifying the tiny net")
            facts = finish(config, task, folder, arms)
            progress.message(summary(facts, folder))
    accelerator.wait_for_everyone()
    return folder


def finish(config: TrainConfig, task: Task, folder: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """Extract, save, export, verify, and write the report.

    Returns:
        What ``report.json`` holds.
    """
    write_history(arms, folder)
    nets = {arm.name: _delivered(arm, config) for arm in arms}
    supernet: Any = next((arm.net.cpu() for arm in arms if arm.name == "netaug"), None)
    tiny = nets["netaug"] if "netaug" in nets else nets["baseline"]
    original = build_net(config, task, "baseline")
    image = task.example(1)
    metadata = weights_metadata(config, task)
    save_weights(tiny, folder / "tiny.safetensors", metadata)
    if "baseline" in nets:
        save_weights(nets["baseline"], folder / "baseline.safetensors", metadata)
    onnx_file = folder / "tiny.onnx"
    with writing(onnx_file):
        verification = verify(tiny, original, (image,), folder=folder)  # leaves the files that it compared
        (folder / "original.onnx").unlink(missing_ok=True)  # untrained weights: of no use beyond the comparison
    written = config.opset is None and onnx_file.exists()
    no_onnx = None if written else export_net(tiny, onnx_file, image, config.opset)
    groups, pins = ((), ()) if supernet is None else (control(supernet).groups, control(supernet).pins)
    facts = make_report(
        config,
        task,
        {arm.name: ArmResult(arm.history, arm.step, arm.seconds) for arm in arms},
        groups=groups,
        pins=pins,
        macs=_costs(tiny, original, supernet, image),
        verification=verification.to_dict(),
        no_onnx=no_onnx,
    )
    write_report(facts, original, folder, groups=groups, pins=pins)
    return facts


def summary(facts: Mapping[str, Any], folder: Path) -> str:
    """What a run came to, in a few lines for the terminal."""
    arms = ", ".join(f"{name} {arm['val_accuracy']:.1%}" for name, arm in facts["arms"].items())
    passed = facts["verification"]["passed"]
    lines = [
        f"validation accuracy: {arms}",
        verdict(facts["comparison"], facts["data"]["val_images"]),
        f"tiny net: {facts['macs']['tiny']['macs']:,} MACs, {facts['macs']['tiny']['params']:,} parameters; "
        f"verified against the original: {'yes' if passed else 'NO, see the report'}",
        no_onnx_line(facts),
        f"report: {folder / 'report.html'}",
    ]
    return "\n".join(line for line in lines if line)


def write_history(arms: Sequence[Arm], folder: Path) -> None:
    """Write ``metrics.csv`` anew from the arms' histories."""
    write_metrics([{"arm": arm.name, **row} for arm in arms for row in arm.history], METRICS, folder)


def _delivered(arm: Arm, config: TrainConfig) -> nn.Module:
    """The arm's tiny net as plain PyTorch on the CPU, in eval mode, with the weights that the settings ask for."""
    net = arm.plain()
    if config.keep.deliver == "best":
        tensors, _ = load_weights(arm.best_weights)
        put_weights(net, tensors, arm.best_weights, config.model.name)
    return net


def _costs(tiny: nn.Module, original: nn.Module, supernet: Any, image: Tensor) -> dict[str, Any]:
    """MACs and parameters of the nets of a run, for one image."""
    costs = {"tiny": count(tiny, image), "original": count(original, image)}
    if supernet is not None:
        with netaug_fx.Supernet.augmented(supernet, {g.name: g.choices[-1] for g in control(supernet).groups}):
            control(supernet).active.statistics = {}  # one image has no statistics of its own, and costs need none
            costs["widest"] = count(supernet, image)
    leaves = {path for path, module in original.named_modules() if not list(module.children())}
    by_layer = {path: macs for path, macs in costs["tiny"].by_module.items() if path in leaves and macs}
    return {
        **{name: {"macs": cost.macs, "params": cost.params} for name, cost in costs.items()},
        "by_layer": by_layer,
        "largest_layer": max(by_layer.values(), default=1),
        "includes": costs["tiny"].includes,
    }
