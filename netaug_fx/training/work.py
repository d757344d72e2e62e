"""A run with arms, of any kind of task: train them one after the other, then deliver the tiny net.

What the kind of task decides is asked of a `Kind`: `run` has the one of classification, `detection.run` the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

import netaug_fx
from netaug_fx.passes.graph import Group, Pin
from netaug_fx.passes.macs import count
from netaug_fx.passes.verify import verify
from netaug_fx.supernet import control
from netaug_fx.training.arm import Arm
from netaug_fx.training.checkpoint import load_weights, put_weights, save_weights, writing
from netaug_fx.training.config import ArmName, ArmsConfig
from netaug_fx.training.data import Problem
from netaug_fx.training.engine import train_arm
from netaug_fx.training.interrupt import StopRequest
from netaug_fx.training.progress import make_progress
from netaug_fx.training.run_folder import export_net, torch_threads, weights_metadata, write_metrics
from netaug_fx.training.tracking import Tracking

Config = TypeVar("Config", bound=ArmsConfig)
Images = TypeVar("Images", bound=Problem)
Config_contra = TypeVar("Config_contra", bound=ArmsConfig, contravariant=True)
Images_contra = TypeVar("Images_contra", bound=Problem, contravariant=True)


class Kind(Protocol[Config_contra, Images_contra]):
    """What a kind of task decides.

    Attributes:
        metrics: The columns of ``metrics.csv``.
    """

    metrics: tuple[str, ...]

    def net(self, config: Config_contra, task: Images_contra, arm: ArmName) -> nn.Module:
        """The net of an arm with its first weights."""
        ...

    def arm(
        self, name: ArmName, config: Config_contra, task: Images_contra, accelerator: Any, net: nn.Module, folder: Path
    ) -> Arm:
        """An arm around that net, not begun."""
        ...

    def report(self, config: Config_contra, task: Images_contra, folder: Path, delivered: Delivered) -> dict[str, Any]:
        """Writes ``report.json`` and ``report.html``; returns what the former holds."""
        ...

    def summary(self, facts: Mapping[str, Any], folder: Path) -> str:
        """What a run came to, in a few lines for the terminal."""
        ...


@dataclass(frozen=True)
class Delivered:
    """What a run ends with.

    Attributes:
        arms: All of them, trained.
        nets: The tiny net of each arm, as plain PyTorch on the CPU, in eval mode.
        tiny: That of the last arm.
        original: The model that went in, untrained.
        groups, pins: What grew and what did not; empty without the arm ``netaug``.
        macs: Multiply-adds and parameters of the nets, for one image.
        verification: What ``verify`` found, as JSON values.
        no_onnx: Why there is no ONNX file, where there is none.
    """

    arms: Sequence[Arm]
    nets: Mapping[str, nn.Module]
    tiny: nn.Module
    original: nn.Module
    groups: Sequence[Group]
    pins: Sequence[Pin]
    macs: Mapping[str, Any]
    verification: Mapping[str, Any]
    no_onnx: str | None


@dataclass(frozen=True)
class Work(Generic[Config, Images]):
    """A run under way: its kind, settings, images, folder, and accelerate's ``Accelerator``, which is not typed."""

    kind: Kind[Config, Images]
    config: Config
    task: Images
    folder: Path
    accelerator: Any

    def run(self) -> Path:
        """Trains the arms one after the other, then finishes the run on the main process; returns its folder."""
        config, task = self.config, self.task
        threads = config.threads or (1 if config.data.name == "digits" else None)
        with torch_threads(threads), make_progress(main_process=self.accelerator.is_main_process) as progress:
            progress.message(
                f"{config.model.name} on {task.name}: {len(task.train)} training and {len(task.val)} "
                f"validation images, {len(task.classes)} classes; processes: {self.accelerator.num_processes}, on "
                f"{self.accelerator.device.type}; run folder {self.folder}"
            )
            for note in task.notes():
                progress.message(note)
            arms = self._train(progress)
            if self.accelerator.is_main_process:
                progress.message("extracting, exporting and verifying the tiny net")
                progress.message(self.kind.summary(self.finish(arms), self.folder))
        self.accelerator.wait_for_everyone()
        return self.folder

    def _train(self, progress: Any) -> list[Arm]:
        config, task, accelerator = self.config, self.task, self.accelerator
        arms: list[Arm] = []
        metadata = weights_metadata(config, task)
        tracking = Tracking(config.tracking, self.folder, config.model_dump(mode="json"), accelerator.is_main_process)

        def epoch_done() -> None:
            arms[-1].save_best(metadata)
            tracking.log(arms[-1].name, arms[-1].history[-1])
            if accelerator.is_main_process:
                self.write_history(arms)

        with StopRequest() as stop, closing(tracking):
            for name in config.active_arms:
                net = self.kind.net(config, task, name)
                arms.append(self.kind.arm(name, config, task, accelerator, net, self.folder / "checkpoints"))
                arms[-1].restore()
                train_arm(arms[-1], progress, stop, on_epoch=epoch_done)
                arms[-1].let_go()
        return arms

    def finish(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """Extracts, saves, exports, verifies, and writes the report.

        Returns:
            What ``report.json`` holds.
        """
        self.write_history(arms)
        nets = {arm.name: self._best_or_last(arm) for arm in arms}
        tiny = nets["netaug"] if "netaug" in nets else nets["baseline"]
        metadata = weights_metadata(self.config, self.task)
        save_weights(tiny, self.folder / "tiny.safetensors", metadata)
        if "baseline" in nets:
            save_weights(nets["baseline"], self.folder / "baseline.safetensors", metadata)
        return self.kind.report(self.config, self.task, self.folder, self._verified(arms, nets, tiny))

    def _verified(self, arms: Sequence[Arm], nets: Mapping[str, nn.Module], tiny: nn.Module) -> Delivered:
        supernet: Any = next((arm.net.cpu() for arm in arms if arm.name == "netaug"), None)
        original = self.kind.net(self.config, self.task, "baseline")
        image, onnx_file = self.task.example(1), self.folder / "tiny.onnx"
        with writing(onnx_file):
            verification = verify(tiny, original, (image,), folder=self.folder)  # leaves the files that it compared
            (self.folder / "original.onnx").unlink(missing_ok=True)  # untrained weights: no use beyond the comparison
        written = self.config.opset is None and onnx_file.exists()
        no_onnx = None if written else export_net(tiny, onnx_file, image, self.config.opset)
        groups, pins = ((), ()) if supernet is None else (control(supernet).groups, control(supernet).pins)
        macs = _costs(tiny, original, supernet, image)
        return Delivered(arms, nets, tiny, original, groups, pins, macs, verification.to_dict(), no_onnx)

    def write_history(self, arms: Sequence[Arm]) -> None:
        """Writes ``metrics.csv`` anew from the arms' histories."""
        rows = [{"arm": arm.name, **row} for arm in arms for row in arm.history]
        write_metrics(rows, self.kind.metrics, self.folder)

    def _best_or_last(self, arm: Arm) -> nn.Module:
        """The arm's tiny net as plain PyTorch on the CPU, in eval mode, with the weights that the settings ask for."""
        net = arm.plain()
        if self.config.keep.deliver == "best":
            tensors, _ = load_weights(arm.best_weights)
            put_weights(net, tensors, arm.best_weights, self.config.model.name)
        return net


def _costs(tiny: nn.Module, original: nn.Module, supernet: Any, image: Tensor) -> dict[str, Any]:
    """MACs and parameters of the nets of a run, for one image."""
    costs = {"tiny": count(tiny, image), "original": count(original, image)}
    if supernet is not None:
        with netaug_fx.Supernet.augmented(supernet, control(supernet).widest()):
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
