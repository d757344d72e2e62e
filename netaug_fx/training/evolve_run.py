"""A whole run of Knowledge Evolution: generations of the dense net, the slim net cut out, and a report.

A run folder holds::

    config.yaml           the resolved settings
    metrics.csv           one row for each generation (and the control) and epoch
    checkpoints/          to resume from: the generation under way, the one before, and what came of the finished ones
    slim.safetensors      the slim net's weights (``kels``)
    dense.safetensors     the dense net's weights
    slim.onnx             the slim net for other runtimes (``wels``: dense.onnx)
    report.json           what the page shows, for programs
    report.html           one page that needs no network

Each generation trains the dense net from where the last one ended, with the reset hypothesis drawn anew and a fresh
optimizer and schedule ([KE]: Taha et al., CVPR 2021, section 3). The control trains the model once for as many epochs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

import netaug_fx
from netaug_fx.atomic import write_text
from netaug_fx.errors import CheckpointError, InputError
from netaug_fx.passes.macs import count
from netaug_fx.supernet import control
from netaug_fx.training.arm import Arm, plain_net
from netaug_fx.training.checkpoint import load_state, save_weights, writing
from netaug_fx.training.config import EvolveConfig
from netaug_fx.training.data import Task, load_task, make_loaders
from netaug_fx.training.engine import train_arm
from netaug_fx.training.evolve_report import CONTROL, Finished, make_report, summary, write_report
from netaug_fx.training.interrupt import StopRequest
from netaug_fx.training.losses import BesideLabels, ClassWise, Triplet
from netaug_fx.training.methods import Dense, Plain
from netaug_fx.training.model_loading import check_outputs, load_model
from netaug_fx.training.progress import Progress, make_progress
from netaug_fx.training.run_folder import (
    check_request,
    export_net,
    new_run,
    old_run,
    torch_threads,
    weights_metadata,
    write_metrics,
)
from netaug_fx.training.tracking import Tracking, check_tracking
from netaug_fx.training.transfer import classifier_tensors, cuts_of

METRICS = (
    "arm",
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "slim_loss",
    "slim_accuracy",
)
LARGEST_SEED = 2**31


def start(config: EvolveConfig, folder: Path | None = None) -> Path:
    """Train all generations in a new folder and return it.

    Raises:
        RunError: the folder exists, cannot be written, the loss diverged, or the run was interrupted.
        InputError: model or settings cannot be used.
        PlanError: no width of the model can be cut.
        DataError: the images cannot be used.
        ExportError: the opset cannot be had.
    """
    return _Evolution(*new_run(config, folder, prepare)).run()


def resume(folder: Path) -> Path:
    """Continue a run that was interrupted or killed; a finished one only gets its last files written again.

    Raises:
        RunError: the folder is no run of ``netaug-fx evolve``.
        CheckpointError: a checkpoint in it cannot be used.
    """
    return _Evolution(*old_run(folder, EvolveConfig, prepare)).run()


def prepare(config: EvolveConfig) -> Task:
    """Load the images, split the net and try both halves of it, before anything is written.

    Raises:
        InputError: the net does not exist, cannot take the images, or its outputs do not match the classes.
        PlanError: no width of it can be cut.
        DataError: the images cannot be used.
        ExportError: the opset cannot be had.
    """
    check_tracking(config.tracking)
    task = load_task(config.data, config.seed)
    net = plain_net(config, task)
    check_outputs(net, task.example(), len(task.classes), config.model.name)
    beside = beside_labels(config, task, net)
    if isinstance(beside, Triplet):
        beside.check(net, task.example(), config.model.name)
    train, _, _ = make_loaders(task, config.data, config.seed, in_pairs=beside is not None)
    check_request(config, task, netaug_fx.extract(split_net(config, task)), len(train))
    return task


def split_net(config: EvolveConfig, task: Task) -> netaug_fx.Supernet:
    """The net with its first weights, split."""
    evolve = config.evolve
    return netaug_fx.evolve(
        plain_net(config, task),
        evolve.keep,
        evolve.method,
        example_inputs=task.example(),
        pin=tuple(evolve.pin),
        seed=config.seed,
    )


def beside_labels(config: EvolveConfig, task: Task, net: nn.Module) -> BesideLabels | None:
    """What counts beside the labels, as the settings ask."""
    evolve = config.evolve
    if evolve.loss == "class_wise":
        return ClassWise(evolve.loss_weight, evolve.temperature)
    if evolve.loss == "triplet":
        names = classifier_tensors(net.state_dict(), config.model, task)
        paths = {name.rpartition(".")[0] for name in names}
        # the same one in every process: the last of them in the model's own order
        path = next((path for path, _ in reversed(list(net.named_modules())) if path in paths), "")
        if not path:
            raise InputError(
                f"evolve.loss: triplet (--loss) compares what the classifier reads, and {config.model.name} has no "
                "module of its own for it; take class_wise, or put the classifier into a module"
            )
        return Triplet(evolve.loss_weight, evolve.margin, path)
    return None


@dataclass
class _Evolution:
    """A run under way."""

    config: EvolveConfig
    task: Task
    folder: Path
    accelerator: Any
    finished: list[Finished] = field(default_factory=list)
    underway: Arm | None = None

    def run(self) -> Path:
        threads = self.config.threads or (1 if self.config.data.name == "digits" else None)
        main = self.accelerator.is_main_process
        with torch_threads(threads), make_progress(main_process=main) as progress:
            progress.message(
                f"{self.config.model.name} on {self.task.name}: {len(self.task.train)} training and "
                f"{len(self.task.val)} validation images, {len(self.task.classes)} classes; run folder {self.folder}"
            )
            tracking = Tracking(self.config.tracking, self.folder, self.config.model_dump(mode="json"), main)
            with StopRequest() as stop, closing(tracking):
                supernet = self._generations(progress, stop, tracking)
                plain = self._control(progress, stop, tracking) if self.config.evolve.control else None
            if main:
                progress.message("cutting out, exporting and verifying")
                progress.message(summary(self._finish(supernet, plain), self.folder))
        self.accelerator.wait_for_everyone()
        return self.folder

    # -- training ----------------------------------------------------------------------------------

    def _generations(self, progress: Progress, stop: StopRequest, tracking: Tracking) -> netaug_fx.Supernet:
        self.finished = self._read_finished()
        net = split_net(self.config, self.task)
        done = sum(each.name != CONTROL for each in self.finished)
        if done:
            self._load_last_weights(net, done)
        self._forget_before(done)
        method = Dense(beside_labels(self.config, self.task, plain_net(self.config, self.task)))
        for number in range(done + 1, self.config.evolve.generations + 1):
            if number > 1:
                # What was cut before has no first weights of its own: its layers know how they start.
                initialise = None if cuts_of(self.config.model) else self._initialise
                netaug_fx.reset_(net, initialise=initialise, reset_norm=self.config.evolve.reset_norm)
            arm = self._arm(name_of(number), self._settings(number), net, method)
            self._train(arm, progress, stop, tracking)
            self._forget_before(number)
        return net

    def _control(self, progress: Progress, stop: StopRequest, tracking: Tracking) -> nn.Module:
        epochs = self.config.optim.epochs * self.config.evolve.generations
        optim = self.config.optim.model_copy(update={"epochs": epochs})
        arm = self._arm(
            CONTROL, self.config.model_copy(update={"optim": optim}), plain_net(self.config, self.task), Plain()
        )
        if any(each.name == CONTROL for each in self.finished):
            arm.restore()
        else:
            self._train(arm, progress, stop, tracking)
        return arm.plain()

    def _arm(self, name: str, config: EvolveConfig, net: nn.Module, method: Plain) -> Arm:
        return Arm(name, config, self.task, self.accelerator, net, self.folder / "checkpoints", method)

    def _train(self, arm: Arm, progress: Progress, stop: StopRequest, tracking: Tracking) -> None:
        """Trains a generation or the control from where it stands, and keeps what came of it."""

        def epoch_done() -> None:
            tracking.log(arm.name, arm.history[-1])
            if self.accelerator.is_main_process:
                self._write_metrics([*self.finished, _result(arm)])

        arm.restore()
        # The main process is about to write and to delete what the others have to have read.
        self.accelerator.wait_for_everyone()
        train_arm(arm, progress, stop, on_epoch=epoch_done)
        self.accelerator.free_memory()  # it would hold every generation's optimizer
        self.finished.append(_result(arm))
        if self.accelerator.is_main_process:
            content = [vars(each) for each in self.finished]
            with writing(self._finished_file):
                write_text(self._finished_file, json.dumps(content))

    def _settings(self, number: int) -> EvolveConfig:
        """Each generation sees the images in another order."""
        return self.config.model_copy(update={"seed": (self.config.seed + 7919 * (number - 1)) % LARGEST_SEED})

    def _initialise(self, dense: nn.Module) -> None:
        """As the model does when it is made, untrained; ``reset_`` has seeded the random numbers."""
        model = self.config.model
        kwargs = model.kwargs | ({"pretrained": False} if "pretrained" in model.kwargs else {})
        fresh = load_model(
            model.name, num_classes=len(self.task.classes), in_channels=self.task.channels, kwargs=kwargs
        )
        dense.load_state_dict(fresh.state_dict())

    # -- state -------------------------------------------------------------------------------------

    @property
    def _finished_file(self) -> Path:
        return self.folder / "checkpoints" / "finished.json"

    def _checkpoint(self, number: int) -> Path:
        return self.folder / "checkpoints" / f"{name_of(number)}.pt"

    def _forget_before(self, number: int) -> None:
        """Only the last finished generation is gone on from; a kill may have left the one before it."""
        if self.accelerator.is_main_process:
            for earlier in range(1, number):
                self._checkpoint(earlier).unlink(missing_ok=True)

    def _read_finished(self) -> list[Finished]:
        if not self._finished_file.exists():
            return []
        try:
            return [Finished(**each) for each in json.loads(self._finished_file.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self._finished_file} cannot be read: {error}. Bring back the file, or start a new run."
            ) from None

    def _load_last_weights(self, net: netaug_fx.Supernet, number: int) -> None:
        arm = self._arm(name_of(number), self._settings(number), net, Dense())
        net.load_state_dict(load_state(self._checkpoint(number), arm.name, arm.fingerprint).weights)

    def _write_metrics(self, results: Sequence[Finished]) -> None:
        write_metrics([{"arm": each.name, **row} for each in results for row in each.history], METRICS, self.folder)

    # -- the end -----------------------------------------------------------------------------------

    def _finish(self, supernet: netaug_fx.Supernet, plain: nn.Module | None) -> dict[str, Any]:
        """Cut out, save, export, verify, and write the report."""
        self._write_metrics(self.finished)
        supernet = supernet.cpu().eval()
        image = self.task.example(1)
        dense, slim = netaug_fx.extract(supernet, dense=True), netaug_fx.extract(supernet)
        nets = {"dense": dense, "slim": slim} if control(supernet).groups else {"dense": dense}
        cut = {"keep": self.config.evolve.keep, "pin": self.config.evolve.pin}
        for name, net in nets.items():
            metadata = weights_metadata(self.config, self.task, *([cut] if name == "slim" else []))
            save_weights(net, self.folder / f"{name}.safetensors", metadata)
        verification = netaug_fx.verify(slim, supernet, (image,)).to_dict()
        deployed = next(reversed(nets))
        no_onnx = export_net(nets[deployed], self.folder / f"{deployed}.onnx", image, self.config.opset)
        costs = {name: count(net, image) for name, net in nets.items()}
        facts = make_report(
            self.config,
            self.task,
            self.finished,
            macs={name: {"macs": cost.macs, "params": cost.params} for name, cost in costs.items()},
            includes=costs["dense"].includes,
            groups=control(supernet).groups,
            verification=verification,
            no_onnx=no_onnx,
        )
        write_report(facts, self.folder)
        return facts


def name_of(generation: int) -> str:
    """How a generation is called in files and tables."""
    return f"generation-{generation}"


def _result(arm: Arm) -> Finished:
    return Finished(arm.name, arm.history, arm.step, arm.seconds)
