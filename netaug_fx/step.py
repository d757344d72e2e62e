"""One training step of Network Augmentation, for any loop: gradients of the target and of wider nets around it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netaug_fx.distillation import Distillation
from netaug_fx.errors import InputError
from netaug_fx.supernet import Supernet, control, is_supernet

LossFunction = Callable[[nn.Module], "Tensor | Mapping[str, Tensor] | tuple[Tensor, Any]"]
"""Runs the net that it is given on a batch; returns the loss, a dict of losses as detectors give it, or the loss and
the net's output."""

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Step:
    """What a step came to; its tensors are detached.

    Attributes:
        loss: The target's loss, distillation included.
        augmented: The losses of the wider nets, without their weight ``alpha``.
        widths: The widths of each of them, by group name.
        output: The target's output, where ``loss_fn`` returns one; else None.
    """

    loss: Tensor
    augmented: tuple[Tensor, ...]
    widths: tuple[dict[str, int], ...]
    output: Any


def step(
    supernet: nn.Module,
    loss_fn: LossFunction,
    *,
    backward: Callable[[Tensor], object] | None = None,
    no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    alpha: float = 1.0,
    draws: int = 1,
    kinds: Collection[str] | None = None,
    pool: int | None = None,
    pool_number: int = 0,
    widths: Sequence[Mapping[str, int]] | None = None,
    distill: Distillation | None = None,
    project: bool = False,
) -> Step:
    """Adds to the gradients what one batch gives: ``L(target) + alpha * sum L(wider net)`` ([NetAug], equation 2).

    Everything else stays with the caller: ``zero_grad``, clipping, the optimizer's step, accumulation over several
    batches (call it once for each, with the ``widths`` of the first), mixed precision.

    Args:
        supernet: What ``augment`` returned, or a wrapper around it (``DistributedDataParallel``, what accelerate or
            Fabric prepared).
        loss_fn: Called with ``supernet``, once for the target and once for each wider net; runs it on the batch and
            returns the loss, a dict of losses whose sum is the loss, or the pair of loss and output.
        backward: Called with each loss instead of ``loss.backward()``: ``accelerator.backward``, ``fabric.backward``,
            ``self.manual_backward`` or ``lambda loss: scaler.scale(loss).backward()``.
        no_sync: Makes a context in which backward passes do not communicate; all but the last run in it. By default
            the wrapper's own ``no_sync`` where it has one. The target's pass is never the one that communicates: it
            leaves the extra parameters without gradients, which data-parallel wrappers wait for.
        alpha: Weight of each wider net's loss.
        draws: How many wider nets (the paper found one best).
        kinds: Kinds of groups that are widened, such as ``{"inner"}`` in the paper's second phase.
        pool: Draw from that many fixed assignments instead of from all; ``torch.compile`` compiles each once.
        pool_number: Which pool: another one for each number, such as that of the epoch.
        widths: Those of the wider nets, in place of drawn ones, as a `Step` holds them: the paper has one wider net in
            each step of the optimizer, so batches that are added up for one take those of the first.
        distill: In-place distillation: the widest net passes first and its output teaches the target (sandwich rule,
            Yu and Huang, ICCV 2019); the other ``draws - 1`` nets are drawn. ``loss_fn`` has to return its output.
            With ``kinds``, the widest net is widest in these alone; with ``widths``, the first of them teaches.
        project: Where the wider nets' gradient conflicts with the target's (their inner product over the target's
            parameters is negative), take away its part along the target's (NetDistiller, arXiv 2310.19820; "gradient
            surgery", Yu et al., NeurIPS 2020). Each process does so with its own gradients before they are averaged.

    Returns:
        Losses, widths and the target's output.

    Raises:
        InputError: there is no supernet, or it is within ``augmented``; an argument is out of range; ``widths`` holds
            none, an unknown group or a width outside its range; or ``loss_fn`` returns no output that ``distill``
            could use.

    Example:
        >>> import torch, netaug_fx
        >>> net = netaug_fx.augment(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
        >>> optimizer.zero_grad()
        >>> done = netaug_fx.step(net, lambda net: torch.nn.functional.cross_entropy(net(x), y))
        >>> optimizer.step()
        >>> len(done.augmented)
        1
    """
    own = _supernet_in(supernet)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InputError(f"draws must be an integer of at least 1, not {draws!r}")
    if not 0 < alpha < math.inf:
        raise InputError(
            f"alpha must be above 0 and finite, not {alpha!r}; without wider nets, train the target by itself"
        )
    if distill is not None and not callable(distill):
        raise InputError(f"distill must be a netaug_fx.Distillation, such as netaug_fx.Distillation(), not {distill!r}")
    passes = _Passes(supernet, own, loss_fn, backward or _plain_backward, alpha, needs_output=distill is not None)
    silent: Callable[[], AbstractContextManager[Any]] = no_sync or getattr(supernet, "no_sync", nullcontext)  # type: ignore[assignment]
    if widths is None:
        widths = _drawn(own, draws, kinds, pool, pool_number, distill)
    elif not widths:
        raise InputError("widths holds no wider net; give those that an earlier step used, or leave it out")
    else:
        for net in widths:  # before any pass
            control(own).as_widths(net)
    drawn = widths if distill is None else widths[1:]
    surgery = _Surgery(list(own.parameters())) if project else None
    # Where no wider net passes last, or gradients are mended after all passes, nothing else sends them.
    by_hand = _communicating(supernet) if project or not drawn else None
    with silent():
        teacher = None
        if distill is not None:
            with _part(surgery, "wider"):
                teacher = passes.wider(widths[0])
        with _part(surgery, "target"):
            loss, output = passes.target(distill, teacher)
    for count, net in enumerate(drawn, start=1):
        with silent() if by_hand is not None or count < len(drawn) else nullcontext(), _part(surgery, "wider"):
            passes.wider(net)
    if surgery is not None:
        surgery.finish()
    if by_hand is not None:
        _average_gradients(own, by_hand)
    return Step(loss, tuple(passes.losses), tuple(passes.widths), output)


class _Passes:
    """Forward and backward of the target and of wider nets, by the caller's means."""

    def __init__(
        self,
        wrapped: nn.Module,
        own: Supernet,
        loss_fn: LossFunction,
        backward: Callable[[Tensor], object],
        alpha: float,
        *,
        needs_output: bool,
    ) -> None:
        self.wrapped, self.own, self.loss_fn, self.backward, self.alpha = wrapped, own, loss_fn, backward, alpha
        self.needs_output = needs_output
        self.losses: list[Tensor] = []
        self.widths: list[dict[str, int]] = []

    def target(self, distill: Distillation | None, teacher: Any) -> tuple[Tensor, Any]:
        loss, output = self._run()
        if distill is not None:
            loss = loss + distill(output, teacher)
        self.backward(loss)
        return loss.detach(), _detached(output)

    def wider(self, widths: Mapping[str, int]) -> Any:
        """Returns the wider net's output."""
        with Supernet.augmented(self.own, widths) as used:
            loss, output = self._run()
            self.backward(self.alpha * loss)
        self.losses.append(loss.detach())
        self.widths.append(dict(used))
        return _detached(output)

    def _run(self) -> tuple[Tensor, Any]:
        result = self.loss_fn(self.wrapped)
        if isinstance(result, Mapping):
            result = total_loss(result)
        loss, output = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                "loss_fn must return the loss, a tensor of one number, a dict of losses, or the pair of loss and "
                f"output, not {tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}"
            )
        if self.needs_output and output is None:
            raise InputError("distill needs what the nets say: let loss_fn return the pair of loss and output")
        return loss, output


def total_loss(losses: Any) -> Tensor:
    """The sum of a dict of losses, as detectors give it in training, in single precision at least.

    Raises:
        InputError: it is no dict of losses.
    """
    if not isinstance(losses, Mapping) or not losses:
        found = "an empty one" if isinstance(losses, Mapping) else type(losses).__name__
        raise InputError(f"expected a dict of losses by name, each a tensor of one number, not {found}")
    wrong = [name for name, loss in losses.items() if not isinstance(loss, Tensor) or loss.numel() != 1]
    if wrong:
        raise InputError(
            f"expected a dict of losses by name, each a tensor of one number; {', '.join(map(repr, wrong))} is none"
        )
    halves = (torch.float16, torch.bfloat16)
    values = (loss.float() if loss.dtype in halves else loss for loss in losses.values())
    total: Tensor = functools.reduce(torch.add, (value.reshape(()) for value in values))
    return total


class _Surgery:
    """Gradients of the target and of the wider nets, kept apart until all are there."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[str, Gradients] = {part: [None] * len(parameters) for part in ("target", "wider")}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the gradients that come up within to those of a part, and puts back what was there before."""
        before: Gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        try:
            yield
            self.sums[name] = [_sum(old, p.grad) for old, p in zip(self.sums[name], self.parameters, strict=True)]
        finally:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient

    def finish(self) -> None:
        """Takes the conflict out of the wider nets' part, and adds both parts to the parameters' gradients."""
        pairs = [(t, w) for t, w in zip(*self.sums.values(), strict=True) if t is not None and w is not None]
        inner = sum(((t * w).sum(dtype=torch.float32) for t, w in pairs), torch.zeros(()))
        square = sum(((t * t).sum(dtype=torch.float32) for t, _ in pairs), torch.zeros(()))
        share = torch.where(inner < 0, inner / square.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
        for parameter, target, wider in zip(self.parameters, *self.sums.values(), strict=True):
            kept = target if target is None or wider is None else target * (1 - share.to(target.dtype))
            parameter.grad = _sum(parameter.grad, _sum(kept, wider))


def _part(surgery: _Surgery | None, name: str) -> AbstractContextManager[None]:
    return nullcontext() if surgery is None else surgery.part(name)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _plain_backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output


def _drawn(
    own: Supernet,
    draws: int,
    kinds: Collection[str] | None,
    pool: int | None,
    pool_number: int,
    distill: Distillation | None,
) -> list[dict[str, int]]:
    """The wider nets of a step: where one teaches, the widest comes first."""
    teachers = [] if distill is None else [control(own).widest(kinds)]
    return teachers + [control(own).sample(kinds, pool, pool_number) for _ in range(draws - len(teachers))]


def _supernet_in(module: Any) -> Supernet:
    """The supernet itself, or the one within a wrapper.

    Raises:
        InputError: there is none, or it is in an augmented pass.
    """
    found = next((m for m in module.modules() if is_supernet(m)), None) if isinstance(module, nn.Module) else None
    if not isinstance(found, Supernet):
        raise InputError(
            f"{type(module).__name__} holds no supernet: give what netaug_fx.augment(model) returned, or a wrapper "
            "around it"
        )
    if control(found).active.widths is not None:
        raise InputError("step was called within augmented(): leave the context; step enters it by itself")
    return found


def _communicating(wrapped: nn.Module) -> DistributedDataParallel | None:
    """The wrapper that would now send gradients to other processes after a backward pass."""
    found = (m for m in wrapped.modules() if isinstance(m, DistributedDataParallel) and m.require_backward_grad_sync)
    return next(found, None)


def _average_gradients(own: Supernet, wrapper: DistributedDataParallel) -> None:
    """What the wrapper would have done, with one message for each type of number."""
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in own.parameters():
        if parameter.requires_grad:
            # Every process has to send the same tensors, also where a parameter was not used.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    processes = dist.get_world_size(wrapper.process_group)
    for parameters in by_dtype.values():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message, group=wrapper.process_group)
        parts = torch.split(message.div_(processes), [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
