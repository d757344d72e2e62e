"""One arm of a run under way: its net, optimizer, loaders and counters, and how they are saved and brought back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.operations import gather_object
from accelerate.utils.random import set_seed
from torch import Tensor, nn
from torch.random import fork_rng

import netaug_fx
from netaug_fx.errors import CheckpointError
from netaug_fx.passes.copying import copy_model
from netaug_fx.training.average import TargetAverage, plain_view
from netaug_fx.training.checkpoint import ArmState, load_state, rng_state, save_state, save_weights, set_rng_state
from netaug_fx.training.config import ArmName, RunConfig, TrainConfig
from netaug_fx.training.data import Problem, Task
from netaug_fx.training.initialise import initialise_at_widest_
from netaug_fx.training.methods import Plain
from netaug_fx.training.objective import Classification, Objective
from netaug_fx.training.schedule import scaled_rate
from netaug_fx.training.settings import NetAugConfig, OptimConfig
from netaug_fx.training.teacher import Teacher
from netaug_fx.training.transfer import start_from, untrained_net


def build_net(config: TrainConfig, task: Task, arm: ArmName) -> nn.Module:
    """The net of an arm with its first weights, which the seed alone decides: both arms start from the same ones.

    Returns:
        The plain net, or for ``netaug`` the supernet around it.
    """
    net = plain_net(config, task)
    return net if arm == "baseline" else augmented(net, config.netaug, task, config.seed)


def augmented(net: nn.Module, netaug: NetAugConfig, task: Problem, seed: int) -> nn.Module:
    """The supernet around a net that the settings ask for; the net itself where they give no ratio."""
    if netaug.ratio is None:
        return net
    supernet: nn.Module = netaug_fx.augment(
        net,
        ratio=netaug.ratio,
        example_inputs=task.example(),
        pin=tuple(netaug.pin),
        divisor=netaug.divisor,
        compound=netaug.compound,
        seed=seed,
    )
    if netaug.initialise == "widest":
        initialise_at_widest_(supernet)
    return supernet


def plain_net(config: RunConfig, task: Task) -> nn.Module:
    """The net that the settings name, with its first weights, which the seed alone decides."""
    set_seed(config.seed)
    net = untrained_net(config.model, task)
    if config.model.weights is not None:
        with fork_rng(devices=[]):  # looking for the classifier makes another net
            start_from(net, config.model, task)
    return net


def make_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; biases and norms, the parameters of one dimension, are exempt from weight decay."""
    decayed = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    exempt = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )


def restart_scaler_(scaler: Any) -> None:
    """Puts accelerate's gradient scaler, which all arms of a run share, back to where it was made, in place."""
    scaler.load_state_dict(torch.amp.GradScaler(scaler._device).state_dict())


class _Prepared(nn.Module):
    """What accelerate prepares in the net's place: mixed precision replaces the forward of what it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Any) -> Any:
        return self.net(*inputs)


@dataclass
class Arm:
    """One arm under way.

    Attributes:
        net: The plain net or the supernet.
        method: Which passes a step makes.
        accelerator: accelerate's `Accelerator`, which is not typed.
        wrapped: The net as accelerate runs it.
        average: The running average of the target, where one is asked for.
        epoch, batch, step: Epochs completed, batches of the current one (of each process), optimizer steps in all.
        objective: What is learnt, and how it is judged.
        counts: What a step adds to the running sums of an epoch, in this order.
        sums: Running sums of the current epoch, on the device.
        history: One row for each completed epoch.
        best: Score of the best epoch so far; None before the first.
    """

    name: str
    config: RunConfig
    task: Problem
    accelerator: Any
    net: nn.Module
    folder: Path
    method: Plain
    teacher: Teacher | None = None
    objective: Objective = field(default_factory=Classification)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        optim = self.config.optim
        train, self.order, val = self.objective.loaders(self)
        self.counts = ("loss", "augmented_loss", *self.objective.counts, "images")
        self.fingerprint = _fingerprint(self.config, self.net)
        if optim.channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(self.net, optim)
        if self.accelerator.scaler is not None:
            restart_scaler_(self.accelerator.scaler)
        self.wrapped, self.optimizer, self.train_loader, self.val_loader = self.accelerator.prepare(
            _Prepared(self.net), optimizer, train, val
        )
        self.average = TargetAverage(self.net, optim.average) if optim.average is not None else None
        self.epoch_steps = len(self.train_loader) // optim.accumulate
        self.sums = self.no_sums()
        images = self.config.data.batch_size * optim.accumulate * self.accelerator.num_processes
        self.highest_rate = scaled_rate(optim.lr, optim.lr_images, images)
        # Training starts from the same random state however much making the net has drawn; each process has its own, or
        # dropout would drop the same channels in all of them.
        set_seed(self.config.seed, device_specific=True)

    @property
    def checkpoint(self) -> Path:
        """The file that the arm resumes from."""
        return self.folder / f"{self.name}.pt"

    @property
    def best_weights(self) -> Path:
        """The tiny net's weights at the epoch with the best score."""
        return self.folder / f"{self.name}.best.safetensors"

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole arm."""
        return self.epoch_steps * self.config.optim.epochs

    @property
    def judged(self) -> nn.Module:
        """What is validated: the net as accelerate runs it, or the average of its weights."""
        return self.wrapped if self.average is None else self.average.averaged.module

    def no_sums(self) -> Tensor:
        """Running sums of nothing yet, in double precision where the device has it."""
        device = self.accelerator.device
        return torch.zeros(
            len(self.counts), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
        )

    def plain(self) -> nn.Module:
        """The tiny net as it stands, as plain PyTorch on the CPU, in eval mode; the average where there is one."""
        net = plain_view(self.net) if self.average is None else self.average.averaged.module
        return copy_model(net).cpu().eval()

    def save(self) -> None:
        """Write the checkpoint: the main process does, with what it gathers from all, so all have to call this."""
        sums = self.accelerator.gather(self.sums.unsqueeze(0)).cpu()
        states = gather_object([rng_state()])
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = ArmState(
            arm=self.name,
            fingerprint=self.fingerprint,
            weights=self.net.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            epoch=self.epoch,
            batch=self.batch,
            step=self.step,
            sums=sums,
            history=self.history,
            best=self.best,
            rng=states,
            data_order={
                "seed": self.order.seed,
                "epoch": self.epoch,
                "batch": self.batch,
                "images": len(self.task.train),
                "val_images": len(self.task.val),
                "classes": _digest(self.task.classes),
            },
            seconds=self.seconds,
        )
        save_state(state, self.checkpoint)

    def save_best(self, metadata: Mapping[str, Any]) -> None:
        """Keep the tiny net's weights if the last epoch was the best so far (main process only)."""
        score = self.history[-1][self.objective.score]
        if self.best is not None and score <= self.best:
            return
        self.best = score
        if self.accelerator.is_main_process:
            save_weights(self.plain(), self.best_weights, metadata)

    def let_go(self) -> None:
        """Take what is delivered off the device, and drop what only training needs: the next arm has the memory."""
        self.net.cpu()
        if self.average is not None:
            self.average.averaged.cpu()
        self.accelerator.free_memory()
        self.teacher = None
        del self.wrapped, self.optimizer, self.train_loader, self.val_loader

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            CheckpointError: it is truncated, holds code, belongs to another run, to another number of processes, or of
            images, or to other classes.
        """
        if not self.checkpoint.exists():
            return
        state = load_state(self.checkpoint, self.name, self.fingerprint)
        if len(state.sums) != self.accelerator.num_processes:
            raise CheckpointError(
                f"{self.checkpoint} was written by {len(state.sums)} processes, and {self.accelerator.num_processes} "
                "would go on: each step has other images then. Resume with as many processes as before."
            )
        for name, kind, images in (
            ("images", "training", self.task.train),
            ("val_images", "validation", self.task.val),
        ):
            if state.data_order[name] != len(images):
                raise CheckpointError(
                    f"{self.checkpoint}: the run began with {state.data_order[name]} {kind} images, and there are "
                    f"{len(images)} now: what follows could not be compared. Bring the images back, or start anew."
                )
        if state.data_order["classes"] != _digest(self.task.classes):
            raise CheckpointError(
                f"{self.checkpoint}: the run began with other names of classes, or another order, than "
                f"{', '.join(self.task.classes[:5])}...: labels would be others. Bring them back, or start anew."
            )
        self.net.load_state_dict(state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.epoch, self.batch, self.step = state.epoch, state.batch, state.step
        self.sums = state.sums[self.accelerator.process_index].to(self.sums.device)
        self.history, self.best = state.history, state.best
        self.seconds = state.seconds
        set_rng_state(state.rng[self.accelerator.process_index])


def _digest(names: Sequence[str]) -> int:
    return int(hashlib.sha256("\n".join(names).encode()).hexdigest()[:15], 16)


def _fingerprint(config: RunConfig, net: nn.Module) -> str:
    """Identifies what decides the weights: settings, and the names and shapes of the net's tensors."""
    free: dict[str, Any] = dict.fromkeys(("device", "threads", "opset", "arms", "keep", "tracking"), True)
    free["detect"] = {"shown_images", "shown_score"}  # what the report draws
    settings: Mapping[str, Any] = config.model_dump(mode="json", exclude=free)
    shapes = {key: list(value.shape) for key, value in net.state_dict().items() if isinstance(value, Tensor)}
    return hashlib.sha256(json.dumps([settings, shapes], sort_keys=True).encode()).hexdigest()
