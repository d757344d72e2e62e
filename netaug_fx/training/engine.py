"""The training loop, on accelerate: one arm of a run, from its first step or from a checkpoint to its last epoch.

Which passes a step makes is the arm's method (`methods`); what is learnt, and how it is judged, its objective
(`objective`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from netaug_fx.errors import RunError
from netaug_fx.training.arm import Arm
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.methods import NetAug
from netaug_fx.training.progress import Progress
from netaug_fx.training.schedule import learning_rate

LOSS_STEPS = 50
"""Steps between two looks at the loss on an accelerator, where a look waits for all that is under way."""

ASK_STEPS = 10
"""Steps after which processes on accelerators ask each other whether to stop or to save, for which they wait, too."""


def train_arm(arm: Arm, progress: Progress, stop: StopRequest, on_epoch: Callable[[], None]) -> None:
    """Train to the last epoch; write the checkpoint and call ``on_epoch`` after each.

    Raises:
        Interrupted: Ctrl-C or a termination signal came; the checkpoint has every step done so far.
        RunError: the loss is no longer finite.
    """
    epochs = arm.config.optim.epochs
    progress.start_arm(arm.name, total=arm.total_steps, done=arm.step)
    while arm.epoch < epochs:
        started = saved = time.monotonic()
        with closing(_train_epoch(arm)) as steps:  # whatever happens, its loader's workers end with it
            for _ in steps:
                progress.advance()
                ended = arm.batch // arm.config.optim.accumulate >= arm.epoch_steps
                due = time.monotonic() - saved >= 60 * arm.config.keep.minutes
                stopping, due = _agreed(arm, stop.requested, due) if _asks(arm) or ended else (False, False)
                if not ended and (stopping or due):
                    _require_finite(arm, weights=True)
                    saved = time.monotonic()
                    arm.seconds, started = arm.seconds + saved - started, saved
                    arm.save()
                if stopping and not ended:
                    raise Interrupted(arm.folder.parent, arm.config.verb)
        _require_finite(arm, weights=True)
        _end_epoch(arm)
        arm.seconds += time.monotonic() - started
        on_epoch()
        arm.save()
        progress.end_epoch(arm.name, arm.history[-1], epochs)
        (stopping,) = _agreed(arm, stop.requested)
        if stopping and arm.epoch < epochs:
            raise Interrupted(arm.folder.parent, arm.config.verb)


def _train_epoch(arm: Arm) -> Generator[None]:
    """The rest of the current epoch, step by step."""
    config = arm.config
    if arm.batch == 0:
        arm.method.start_epoch(arm)
    # Processes take batches in turn, so as many are gone as all have taken.
    arm.order.epoch, arm.order.start = arm.epoch, arm.batch * arm.accelerator.num_processes
    arm.wrapped.train()
    batches = iter(arm.train_loader)
    for _ in range(arm.batch // config.optim.accumulate, arm.epoch_steps):
        _set_rate(arm)
        _step(arm, batches)
        if _looks(arm):
            _require_finite(arm)
        yield


def _looks(arm: Arm) -> bool:
    """Whether to look at the loss after this step."""
    return arm.accelerator.device.type == "cpu" or arm.step % LOSS_STEPS == 0


def _asks(arm: Arm) -> bool:
    """Whether to see after this step if any process has to stop or to save; one by itself knows without waiting."""
    alone = arm.accelerator.num_processes == 1
    return alone or arm.accelerator.device.type == "cpu" or arm.step % ASK_STEPS == 0


def _set_rate(arm: Arm) -> None:
    rate = learning_rate(
        arm.step,
        highest=arm.highest_rate,
        # A short run is not to end in its warm-up.
        warmup_steps=min(round(arm.config.optim.warmup_epochs * arm.epoch_steps), arm.total_steps // 2),
        total_steps=arm.total_steps,
    )
    for group in arm.optimizer.param_groups:
        group["lr"] = rate


def _step(arm: Arm, batches: Iterator[Any]) -> None:
    """One optimizer step on the next batches."""
    optim = arm.config.optim
    for left in reversed(range(optim.accumulate)):
        # Only the last batch communicates.
        with arm.accelerator.no_sync(arm.wrapped) if left else nullcontext():
            arm.sums += _gradients(arm, next(batches))
            arm.batch += 1
    if optim.clip_norm is not None:
        arm.accelerator.clip_grad_norm_(arm.net.parameters(), optim.clip_norm)
    arm.optimizer.step()
    arm.optimizer.zero_grad()
    if arm.average is not None:
        arm.average.update()
    arm.step += 1


def _gradients(arm: Arm, batch: Any) -> Tensor:
    """Forward and backward of all passes that the arm's method makes; what adds to the sums."""
    lesson = arm.objective.lesson(arm, batch)

    def backward(loss: Tensor) -> None:
        arm.accelerator.backward(loss / arm.config.optim.accumulate)

    loss, output, augmented = arm.method.gradients(arm, batch, lesson.loss, backward)
    augmented_loss = torch.zeros((), device=loss.device) if augmented is None else augmented
    count = lesson.images
    images = torch.tensor(count, device=loss.device)
    values = [loss.detach() * count, augmented_loss * count, *lesson.counted(output), images]
    return torch.stack([value.to(arm.sums.dtype) for value in values])


def _end_epoch(arm: Arm) -> None:
    """Validate, add a row to the history, and set the counters to the start of the next epoch."""
    reduced = arm.accelerator.reduce(arm.sums, reduction="sum").cpu()
    sums: dict[str, float] = dict(zip(arm.counts, reduced.tolist(), strict=True))
    images = sums["images"]
    row: dict[str, float] = {
        "epoch": arm.epoch + 1,
        "step": arm.step,
        "lr": float(arm.optimizer.param_groups[0]["lr"]),
        "train_loss": sums["loss"] / images,
        **arm.objective.means(sums),
    }
    if isinstance(arm.method, NetAug):
        row["augmented_loss"] = sums["augmented_loss"] / images
    arm.history.append(row | arm.method.validate(arm, lambda: evaluate(arm)))
    arm.epoch += 1
    arm.batch = 0
    arm.sums = arm.no_sums()


@torch.no_grad()
def evaluate(arm: Arm) -> dict[str, float]:
    """Metrics of the net that is judged on the validation images, in eval mode."""
    judged = arm.judged.eval()
    if arm.accelerator.num_processes > 1:
        for buffer in judged.buffers():  # running statistics are the first process's, as in what it delivers
            dist.broadcast(buffer, src=0)
    return arm.objective.judge(arm, judged)


def _agreed(arm: Arm, *flags: bool) -> list[bool]:
    """Each flag, raised for all processes where one has raised it: they have to stop, and to save, at the same step."""
    if arm.accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor([float(flag) for flag in flags], device=arm.accelerator.device)
    return [bool(count > 0) for count in arm.accelerator.reduce(raised, reduction="sum")]


def _require_finite(arm: Arm, *, weights: bool = False) -> None:
    """Once the loss was not finite, neither are the sums; before a checkpoint the weights are looked at, too.

    Raises:
        RunError: it was not, in any process; names the last good checkpoint.
    """
    finite = bool(torch.isfinite(arm.sums).all())
    if weights:
        finite = finite and all(bool(torch.isfinite(parameter).all()) for parameter in arm.net.parameters())
    (lost,) = _agreed(arm, not finite)
    if not lost:
        return
    good = (
        f"The last good checkpoint is {arm.checkpoint}." if arm.checkpoint.exists() else "There is no checkpoint yet."
    )
    best = f" The best epoch's weights are in {arm.best_weights}, for --weights." if arm.best_weights.exists() else ""
    raise RunError(
        f"the loss of arm {arm.name!r} is no longer finite at step {arm.step}, epoch {arm.epoch + 1}. {good}{best} "
        f"Start a new run with a learning rate below {arm.config.optim.lr} (--lr) or a longer optim.warmup_epochs."
    )
