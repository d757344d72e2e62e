"""What a net learns: its loss on a batch, what an epoch counts beside it, and how the net is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from netaug_fx.training.data import Batch, Task, make_loaders
from netaug_fx.training.data.config import DataConfig
from netaug_fx.training.data.loaders import EpochOrder

if TYPE_CHECKING:
    from netaug_fx.training.arm import Arm


class Lesson(Protocol):
    """One batch at hand."""

    @property
    def images(self) -> int:
        """How many images it has."""
        ...

    def loss(self, net: nn.Module) -> tuple[Tensor, Any]:
        """Runs a net on it; returns the loss, a mean over images, and the output."""
        ...

    def counted(self, output: Any) -> tuple[Tensor, ...]:
        """What the output adds to the sums of `Objective.counts`."""
        ...


class Objective(Protocol):
    """What the engine asks, of any kind of task.

    Attributes:
        counts: What an epoch sums up beside losses and images.
        score: The validation metric that the best epoch has most of.
    """

    counts: tuple[str, ...]
    score: str

    def loaders(self, arm: Arm) -> tuple[DataLoader[Any], EpochOrder, DataLoader[Any]]:
        """For training and validation, and the order of the first."""
        ...

    def lesson(self, arm: Arm, batch: Any) -> Lesson:
        """What is made of a batch."""
        ...

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Training metrics of an epoch, from its sums."""
        ...

    def judge(self, arm: Arm, net: nn.Module) -> dict[str, float]:
        """Metrics of a net in eval mode on the validation images."""
        ...


class Classification:
    """One class for each image: cross-entropy and accuracy."""

    counts: tuple[str, ...] = ("correct",)
    score = "val_accuracy"

    def loaders(self, arm: Arm) -> tuple[DataLoader[Batch], EpochOrder, DataLoader[Batch]]:
        """Batches of images and labels."""
        task, data = arm.task, arm.config.data
        assert isinstance(task, Task)
        assert isinstance(data, DataConfig)
        return make_loaders(task, data, arm.config.seed, in_pairs=arm.method.in_pairs)

    def lesson(self, arm: Arm, batch: Batch) -> Lesson:
        """The images, mixed where the settings say so."""
        return _Labelled(arm, batch)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Training accuracy."""
        return {"train_accuracy": sums["correct"] / sums["images"]}

    def judge(self, arm: Arm, net: nn.Module) -> dict[str, float]:
        """Loss and accuracy (micro average)."""
        classes = len(arm.task.classes)
        accuracy = MulticlassAccuracy(num_classes=classes, average="micro", sync_on_compute=False)
        accuracy = accuracy.to(arm.accelerator.device)
        loss_sum, count = 0.0, 0
        for images, labels in arm.val_loader:
            with arm.accelerator.autocast():
                logits = net(images).float()
            logits, labels = arm.accelerator.gather_for_metrics((logits, labels))
            accuracy.update(logits, labels)
            loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
        return {"val_loss": loss_sum / count, "val_accuracy": float(accuracy.compute())}


class _Labelled:
    """A batch of images with labels, under mixup, label smoothing and a teacher where the settings ask for them."""

    def __init__(self, arm: Arm, batch: Batch) -> None:
        self.arm = arm
        self.pictures, self.labels = batch
        self.share, self.partners = mixture(arm, len(self.labels))
        if self.share < 1:
            self.pictures = self.share * self.pictures + (1 - self.share) * self.pictures[self.partners]

    @property
    def images(self) -> int:
        return len(self.labels)

    def loss(self, net: nn.Module) -> tuple[Tensor, Tensor]:
        arm = self.arm
        logits = net(self.pictures)
        smoothing = arm.config.optim.label_smoothing
        loss = self._mixed(
            F.cross_entropy(logits, self.labels, label_smoothing=smoothing),
            lambda: F.cross_entropy(logits, self.labels[self.partners], label_smoothing=smoothing),
        )
        if arm.teacher is not None and arm.method.is_taught(arm):
            with arm.accelerator.autocast():
                loss = loss + arm.teacher.loss(logits, self.pictures)
        return loss, logits

    def counted(self, output: Tensor) -> tuple[Tensor, ...]:
        guessed = output.detach().argmax(1)
        correct = (guessed == self.labels).sum()
        return (self._mixed(correct, lambda: (guessed == self.labels[self.partners]).sum()),)

    def _mixed(self, own: Tensor, partners: Callable[[], Tensor]) -> Tensor:
        return own if self.share == 1 else self.share * own + (1 - self.share) * partners()


def mixture(arm: Arm, count: int) -> tuple[float, Tensor]:
    """Mixup (Zhang et al., ICLR 2018): the share that images keep, and the image of the batch that each is mixed with.

    Both follow from seed, epoch, batch and process alone, so that a run that is resumed repeats them.
    """
    alpha = arm.config.optim.mixup
    if alpha == 0:
        return 1.0, torch.arange(count)
    draw = np.random.default_rng([arm.config.seed, arm.epoch, arm.batch, arm.accelerator.process_index])
    return float(draw.beta(alpha, alpha)), torch.from_numpy(draw.permutation(count)).to(arm.accelerator.device)
