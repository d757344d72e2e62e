"""The training loop, on accelerate: one arm of a run, from its first step or from a checkpoint to its last epoch.

A step with augmentation is ``L(target) + alpha * L(one wider net)`` (Cai et al., ICLR 2022, equation 2): both
gradients are summed, then the optimizer steps once. Under several processes the first backward does not communicate;
the second, which touches every parameter, sends the sum of both.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.random import set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

import netaug_fx
from netaug_fx.errors import RunError
from netaug_fx.training.checkpoint import ArmState, load_state, rng_state, save_state, set_rng_state
from netaug_fx.training.config import ArmName, OptimConfig, TrainConfig
from netaug_fx.training.data import Batch, Task, make_loaders
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.model_loading import load_model
from netaug_fx.training.progress import Progress
from netaug_fx.training.schedule import in_phase_one, learning_rate

# What a step adds to the running sums of an epoch, in this order.
SUMS = ("loss", "augmented_loss", "correct", "images")


def build_net(config: TrainConfig, task: Task, arm: ArmName) -> nn.Module:
    """The net of an arm with its first weights, which the seed alone decides: both arms start from the same ones.

    Returns:
        The plain net, or for ``netaug`` the supernet around it.
    """
    set_seed(config.seed)
    net = load_model(
        config.model.name, num_classes=len(task.classes), in_channels=task.channels, kwargs=config.model.kwargs
    )
    if arm == "baseline" or config.netaug.ratio is None:
        return net
    supernet: nn.Module = netaug_fx.augment(
        net,
        ratio=config.netaug.ratio,
        example_inputs=task.example(),
        pin=tuple(config.netaug.pin),
        divisor=config.netaug.divisor,
        seed=config.seed,
    )
    return supernet


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


@dataclass
class Arm:
    """One arm under way.

    Attributes:
        net: the plain net or the supernet.
        accelerator: accelerate's `Accelerator`, which is not typed.
        wrapped: the net as accelerate runs it.
        epoch, batch, step: epochs completed, batches of the current one, optimizer steps in all.
        sums: running `SUMS` of the current epoch.
        history: one row for each completed epoch.
    """

    name: ArmName
    config: TrainConfig
    task: Task
    accelerator: Any
    net: nn.Module
    checkpoint: Path
    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        train, self.order, val = make_loaders(self.task, self.config.data, self.config.seed)
        self.fingerprint = _fingerprint(self.config, self.net)
        optimizer = make_optimizer(self.net, self.config.optim)
        self.wrapped, self.optimizer, self.train_loader, self.val_loader = self.accelerator.prepare(
            self.net, optimizer, train, val
        )
        self.epoch_steps = len(self.train_loader)
        # Training starts from the same random state however much making the net has drawn.
        set_seed(self.config.seed)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole arm."""
        return self.epoch_steps * self.config.optim.epochs

    def save(self) -> None:
        """Write the checkpoint (main process only)."""
        if self.accelerator.is_main_process:
            state = ArmState(
                arm=self.name,
                fingerprint=self.fingerprint,
                weights=self.net.state_dict(),
                optimizer=self.optimizer.state_dict(),
                epoch=self.epoch,
                batch=self.batch,
                step=self.step,
                sums=self.sums,
                history=self.history,
                rng=rng_state(),
                data_order={"seed": self.order.seed, "epoch": self.epoch, "batch": self.batch},
                seconds=self.seconds,
            )
            save_state(state, self.checkpoint)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            CheckpointError: it is truncated, holds code, or belongs to another run.
        """
        if not self.checkpoint.exists():
            return
        state = load_state(self.checkpoint, self.name, self.fingerprint)
        self.net.load_state_dict(state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        self.epoch, self.batch, self.step = state.epoch, state.batch, state.step
        self.sums, self.history, self.seconds = state.sums, state.history, state.seconds
        set_rng_state(state.rng)


def train_arm(arm: Arm, progress: Progress, stop: StopRequest, on_epoch: Callable[[], None]) -> None:
    """Train to the last epoch; write the checkpoint and call ``on_epoch`` after each.

    Raises:
        Interrupted: Ctrl-C or a termination signal came; the checkpoint has every step done so far.
        RunError: the loss is no longer finite.
    """
    epochs = arm.config.optim.epochs
    progress.start_arm(arm.name, total=arm.total_steps, done=arm.step)
    while arm.epoch < epochs:
        started = time.monotonic()
        for sums in _train_epoch(arm):
            arm.sums += sums
            arm.batch += 1
            arm.step += 1
            progress.advance()
            if stop.requested and arm.batch < arm.epoch_steps:
                arm.seconds += time.monotonic() - started
                arm.save()
                raise Interrupted(arm.checkpoint.parent.parent)
        _end_epoch(arm)
        arm.seconds += time.monotonic() - started
        arm.save()
        on_epoch()
        progress.end_epoch(arm.name, arm.history[-1], epochs)
        if stop.requested and arm.epoch < epochs:
            raise Interrupted(arm.checkpoint.parent.parent)


def _train_epoch(arm: Arm) -> Iterator[Tensor]:
    """The rest of the current epoch, step by step; yields what each adds to the sums."""
    config = arm.config
    phase_one = in_phase_one(arm.epoch, epochs=config.optim.epochs, stream_fraction=config.netaug.stream_fraction)
    if arm.name == "netaug" and config.netaug.sort and phase_one and arm.batch == 0:
        netaug_fx.sort_channels_(arm.net, arm.optimizer.optimizer)
    arm.order.epoch, arm.order.start = arm.epoch, arm.batch
    arm.wrapped.train()
    for batch in arm.train_loader:
        rate = learning_rate(
            arm.step,
            highest=config.optim.lr,
            warmup_steps=round(config.optim.warmup_epochs * arm.epoch_steps),
            total_steps=arm.total_steps,
        )
        for group in arm.optimizer.param_groups:
            group["lr"] = rate
        kinds = None if phase_one else {"inner"}
        sums = _gradients(arm, batch, kinds)
        if not bool(torch.isfinite(sums).all()):
            raise _diverged(arm)
        arm.optimizer.step()
        arm.optimizer.zero_grad()
        yield sums


def _gradients(arm: Arm, batch: Batch, kinds: set[str] | None) -> Tensor:
    """Forward and backward of the target, then of one wider net drawn from ``kinds`` of groups."""
    images, labels = batch
    accelerator, net = arm.accelerator, arm.net

    def loss_of(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=arm.config.optim.label_smoothing)

    if arm.name == "baseline":
        logits = arm.wrapped(images)
        loss = loss_of(logits)
        accelerator.backward(loss)
        augmented_loss = torch.zeros(())
    else:
        with accelerator.no_sync(arm.wrapped):
            logits = arm.wrapped(images)
            loss = loss_of(logits)
            accelerator.backward(loss)
        with net.augmented(net.sample(kinds=kinds)):  # type: ignore[operator]
            augmented_loss = loss_of(arm.wrapped(images))
            accelerator.backward(arm.config.netaug.alpha * augmented_loss)
    correct = (logits.detach().argmax(1) == labels).sum()
    count = len(labels)
    values = [loss.detach() * count, augmented_loss.detach() * count, correct, torch.tensor(count)]
    return torch.stack([value.to("cpu", torch.float64) for value in values])


def _end_epoch(arm: Arm) -> None:
    """Validate, add a row to the history, and set the counters to the start of the next epoch."""
    reduced = arm.accelerator.reduce(arm.sums.to(arm.accelerator.device), reduction="sum").cpu()
    sums: dict[str, float] = dict(zip(SUMS, reduced.tolist(), strict=True))
    images = sums["images"]
    row: dict[str, float] = {
        "epoch": arm.epoch + 1,
        "step": arm.step,
        "lr": float(arm.optimizer.param_groups[0]["lr"]),
        "train_loss": sums["loss"] / images,
        "train_accuracy": sums["correct"] / images,
    }
    if arm.name == "netaug":
        row["augmented_loss"] = sums["augmented_loss"] / images
    arm.history.append(row | evaluate(arm))
    arm.epoch += 1
    arm.batch = 0
    arm.sums = torch.zeros_like(arm.sums)


@torch.no_grad()
def evaluate(arm: Arm) -> dict[str, float]:
    """Loss and accuracy of the target on the validation images (micro average, in eval mode)."""
    accuracy = MulticlassAccuracy(num_classes=len(arm.task.classes), average="micro", sync_on_compute=False)
    accuracy.to(arm.accelerator.device)
    loss_sum, count = 0.0, 0
    arm.wrapped.eval()
    for images, labels in arm.val_loader:
        logits, labels = arm.accelerator.gather_for_metrics((arm.wrapped(images), labels))
        accuracy.update(logits, labels)
        loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    return {"val_loss": loss_sum / count, "val_accuracy": float(accuracy.compute())}


def _diverged(arm: Arm) -> RunError:
    if arm.checkpoint.exists():
        good = f"The last good checkpoint is {arm.checkpoint} (epoch {arm.epoch})."
    else:
        good = "There is no checkpoint yet: this was the first epoch."
    return RunError(
        f"the loss of arm {arm.name!r} is no longer finite at step {arm.step + 1}, epoch {arm.epoch + 1}. {good} "
        f"Start a new run with a learning rate below {arm.config.optim.lr} (--lr) or a longer optim.warmup_epochs."
    )


def _fingerprint(config: TrainConfig, net: nn.Module) -> str:
    """Identifies what decides the weights: settings, and the names and shapes of the net's tensors."""
    settings: Mapping[str, Any] = config.model_dump(mode="json", exclude={"device", "threads", "opset", "arms"})
    shapes = {key: list(value.shape) for key, value in net.state_dict().items() if isinstance(value, Tensor)}
    return hashlib.sha256(json.dumps([settings, shapes], sort_keys=True).encode()).hexdigest()
