"""What a step trains: the net by itself, the tiny net with wider ones around it, or the dense net of a split one.

The engine asks the arm's method for gradients, and for what to validate; loss, optimizer and schedule are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.supernet import Supernet, control, is_supernet
from netaug_fx.training.data import Batch
from netaug_fx.training.losses import BesideLabels
from netaug_fx.training.schedule import in_phase_one
from netaug_fx.training.settings import DistillConfig, NetAugConfig

if TYPE_CHECKING:
    from netaug_fx.training.arm import Arm

LossOf = Callable[[nn.Module], tuple[Tensor, Tensor]]
"""Runs a net on the batch at hand; returns loss and logits."""

Passed = tuple[Tensor, Tensor, Tensor | None]
"""What the passes of a batch came to: the loss, the logits, and the mean loss of wider nets where there were any."""


class Plain:
    """The net by itself."""

    in_pairs = False  # whether each image of a batch needs another of its class

    def start_epoch(self, arm: Arm) -> None:
        """Called before the first step of each epoch."""

    def gradients(self, arm: Arm, batch: Batch, loss_of: LossOf, backward: Callable[[Tensor], None]) -> Passed:
        """Forward and backward of one batch."""
        loss, logits = loss_of(arm.wrapped)
        backward(loss)
        return loss, logits, None

    def is_taught(self, arm: Arm) -> bool:
        """Whether the pass under way is one that a teacher has a say in."""
        return True

    def validate(self, arm: Arm, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The metrics of an epoch; ``measure`` runs what `Arm.judged` gives on the validation images."""
        return measure()


class NetAug(Plain):
    """The tiny net, and wider nets around it: ``netaug_fx.step`` (Cai et al., ICLR 2022, equation 2)."""

    def __init__(self, netaug: NetAugConfig, distill: DistillConfig) -> None:
        self.netaug, self.distill = netaug, distill
        self._widths: tuple[dict[str, int], ...] = ()  # of the optimizer step under way

    def start_epoch(self, arm: Arm) -> None:
        """Sorts channels in phase one."""
        # Before the first epoch there is nothing to sort by: extra channels are as they were drawn.
        if self.netaug.sort and self._in_phase_one(arm) and arm.epoch > 0:
            netaug_fx.sort_channels_(arm.net, arm.optimizer.optimizer)
            if arm.average is not None:
                arm.average.restart()

    def gradients(self, arm: Arm, batch: Batch, loss_of: LossOf, backward: Callable[[Tensor], None]) -> Passed:
        """Forward and backward of the target, then of wider nets: of the same ones for all batches of a step."""
        netaug, distill = self.netaug, self.distill
        done = netaug_fx.step(
            arm.wrapped,
            loss_of,
            backward=backward,
            no_sync=lambda: arm.accelerator.no_sync(arm.wrapped),
            alpha=netaug.alpha,
            draws=netaug.draws,
            kinds=self.kinds(arm),
            pool=netaug.pool,
            widths=self._widths if arm.batch % arm.config.optim.accumulate else None,
            distill=netaug_fx.Distillation(distill.weight, distill.temperature) if distill.wider_nets_teach else None,
            project=distill.project,
        )
        self._widths = done.widths
        return done.loss, done.output, torch.stack(done.augmented).mean()

    def is_taught(self, arm: Arm) -> bool:
        """The target is."""
        return control(arm.net).active.widths is None

    def kinds(self, arm: Arm) -> set[str] | None:
        """The kinds of groups that are drawn: all, and in phase two inner ones alone.

        All where there are no inner ones, or the wider net would be the target over again.
        """
        if self._in_phase_one(arm) or all(group.kind != "inner" for group in control(arm.net).groups):
            return None
        return {"inner"}

    def _in_phase_one(self, arm: Arm) -> bool:
        return in_phase_one(arm.epoch, epochs=arm.config.optim.epochs, phase_two=self.netaug.phase_two)


class Dense(Plain):
    """The dense net of a model that ``evolve`` split; its slim net, if it has one, is validated beside it."""

    def __init__(self, beside: BesideLabels | None = None) -> None:
        """Args:
        beside: What else counts beside the labels.
        """
        self.beside = beside
        self.in_pairs = beside is not None

    def gradients(self, arm: Arm, batch: Batch, loss_of: LossOf, backward: Callable[[Tensor], None]) -> Passed:
        """Forward and backward of the dense net."""
        with Supernet.dense(arm.net):  # type: ignore[arg-type]
            if self.beside is None:
                loss, logits = loss_of(arm.wrapped)
            else:
                with self.beside.watching(arm.net):
                    loss, logits = loss_of(arm.wrapped)
                loss = loss + self.beside(logits, batch[1])
            backward(loss)
        return loss, logits, None

    def validate(self, arm: Arm, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The dense net's metrics, and the slim net's as ``slim_loss`` and ``slim_accuracy``."""
        with Supernet.dense(arm.net):  # type: ignore[arg-type]
            row = measure()
        if control(arm.net).groups:
            slim: dict[str, Any] = measure()
            row |= {name.replace("val_", "slim_"): value for name, value in slim.items()}
        return row


def method_of(net: nn.Module, netaug: NetAugConfig, distill: DistillConfig | None = None) -> Plain:
    """How an arm trains its net; without ``distill``, nothing but labels teaches it."""
    return NetAug(netaug, distill or DistillConfig(in_place=False)) if is_supernet(net) else Plain()
