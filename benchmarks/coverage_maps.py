"""The proof of index maps, asked of one net: with extra-to-target weights at zero, every width gives the target.

In: a compiled net, its supernet and inputs. Out: a ``Proof``: the answer, and how much of the net it speaks of.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.coverage_table import NOT_PROVEN
from benchmarks.zoos import Inputs
from netaug_fx.api import Compiled
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.running import neutral, output_tensors
from netaug_fx.supernet import Supernet, control
from tests import invariants
from tests.original_statistics import DoubleThroughout, OriginalStatistics
from tests.wirings.registry import randomise

TOLERANCE = 1e-6
_SMALLER_WEIGHTS = (0.85, 0.7)


@dataclass(frozen=True)
class Proof:
    """What came out.

    Attributes:
        answer: ``"ok"``, or what is wrong.
        effects: By how much of their largest value each extra-to-target block would change the outputs, to first
            order. None where it is not known.
        scale: Of the weights that it was shown with.
    """

    answer: str
    effects: tuple[float, ...] | None
    scale: float

    @property
    def heard(self) -> float | None:
        """Part of the blocks that would change the outputs by more than ``TOLERANCE``, from 0 to 1: a wrong map at one
        of the others would go unnoticed."""
        effects = self.effects
        return None if effects is None else sum(e > TOLERANCE for e in effects) / max(len(effects), 1)

    def is_as_telling_as(self, other: Proof) -> bool:
        """Whether no block is silent here that was well heard in another proof."""
        if self.effects is None or other.effects is None:
            return False
        pairs = zip(self.effects, other.effects, strict=True)
        return all(mine > 10 * TOLERANCE or theirs < 100 * TOLERANCE for mine, theirs in pairs)


def prove(compiled: Compiled, supernet: Supernet, inputs: Inputs) -> Proof:
    """Invariant 3 at the widest and at random widths, in float64, with every weight awake.

    Norms across channels take their statistics from the original's channels (``tests/original_statistics.py``). Last,
    the extra-to-target weights are drawn, and the outputs must change: a test that cannot fail proves nothing.

    Where a deep residual net's activations grow from block to block, so does the rounding of sums in another order
    (EfficientNetV2-M: from 1e-15 to 1e-2, by a factor of up to 30 in a block). A net that fails is asked once more with
    smaller weights, and that answer is taken if no block falls silent then: in a net without shortcuts smaller weights
    would silence wrong maps too.
    """
    first = _prove_with(1.0, compiled, supernet, inputs)
    if first.answer in ("ok", NOT_PROVEN):
        return first
    for scale in _SMALLER_WEIGHTS:
        again = _prove_with(scale, compiled, supernet, inputs)
        if again.answer == "ok" and again.is_as_telling_as(first):
            return again
    return first


def _prove_with(scale: float, compiled: Compiled, supernet: Supernet, inputs: Inputs) -> Proof:
    """The answer for one draw of all weights, matrices and filters times ``scale``."""
    net: Any = randomise(copy_model(supernet).double().eval())
    with torch.no_grad():
        for parameter in net.parameters():
            if max(parameter.shape, default=1) != parameter.numel():
                parameter.mul_(scale)
    inputs = invariants.as_double(inputs)
    blocks = list(invariants.contracted_blocks(net))
    drawn = [block.detach().clone() for block in blocks]
    invariants.zero_extra_to_target_(net)
    with torch.no_grad():
        expected = _outputs(compiled, net, inputs, None)
        if not all(torch.isfinite(t).all() for t in expected if t.is_floating_point()):
            return Proof("the target's own outputs are not finite", None, scale)
        answer = _apart(compiled, net, inputs, expected)
    effects = _effects(compiled, net, inputs, blocks, drawn)
    if not answer:
        with torch.no_grad():
            answer = "ok" if _are_heard(compiled, net, inputs, blocks, drawn, expected) else NOT_PROVEN
    return Proof(answer, effects, scale)


def _apart(compiled: Compiled, net: Any, inputs: Inputs, expected: Sequence[Tensor]) -> str:
    _base, *others = invariants.assignments(net, count=1)
    for widths in others:
        for a, b in zip(_outputs(compiled, net, inputs, widths), expected, strict=True):
            if a.shape != b.shape:
                return f"shape {tuple(a.shape)} instead of {tuple(b.shape)}"
            if (apart := _distance(a, b)) > TOLERANCE:
                return f"outputs {apart:.1e} apart at {'the widest' if widths == invariants.widest(net) else widths}"
    return ""


def _are_heard(
    compiled: Compiled, net: Any, inputs: Inputs, blocks: list[Tensor], drawn: list[Tensor], silent: list[Tensor]
) -> bool:
    """Whether outputs change once the extra-to-target weights are drawn; tried again where all of them may be rectified
    away."""
    for attempt in range(4):
        scale = (-1.0) ** attempt * 2.0 ** (attempt // 2)
        for block, values in zip(blocks, drawn, strict=True):
            block.copy_(values * scale)
        heard = _outputs(compiled, net, inputs, invariants.widest(net))
        if any(_distance(a, b) > TOLERANCE for a, b in zip(heard, silent, strict=True)):
            return True
    return False


def _effects(
    compiled: Compiled, net: Any, inputs: Inputs, blocks: list[Tensor], drawn: list[Tensor]
) -> tuple[float, ...] | None:
    """``Proof.effects``, by one backward pass of a random sum of the outputs, each over its largest value."""
    kept = [(block, values) for block, values in zip(blocks, drawn, strict=True) if block.is_floating_point()]
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for block, _ in kept:
        block.requires_grad_()
    try:
        outputs = _outputs(compiled, net, inputs, invariants.widest(net), over_all=True)
        generator = torch.Generator().manual_seed(0)
        total = sum(
            (t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() / t.detach().abs().max().clamp(1e-12)
            for t in outputs
            if t.requires_grad
        )
        gradients = torch.autograd.grad(total, [block for block, _ in kept], allow_unused=True)  # type: ignore[arg-type]
    except Exception:  # a forward without gradients, or one that does not fit the memory with them
        return None
    finally:
        for block, _ in kept:
            block.requires_grad_(False)
    return tuple(
        0.0 if gradient is None else abs(float((gradient * values).sum()))
        for gradient, (_, values) in zip(gradients, kept, strict=True)
    )


def _outputs(
    compiled: Compiled, net: Supernet, inputs: Inputs, widths: dict[str, int] | None, *, over_all: bool = False
) -> list[Tensor]:
    """Outputs; norms across channels take their statistics from the original's, or ``over_all`` channels that are."""
    own = control(net)
    records = compiled.analysis.operators[False]
    with ExitStack() as stack:
        assignment = compiled.plan.base if widths is None else own.as_widths(widths)
        by_variable = {var: assignment[number] for var, number in compiled.plan.numbers.items()}
        if widths is not None:
            stack.enter_context(Supernet.augmented(net, widths))
            stack.enter_context(invariants.statistics_of_the_target(net))
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
        torch.manual_seed(0)
        stack.enter_context(DoubleThroughout())
        if not over_all and any(record.mixes for record in records):
            stack.enter_context(neutral(fast_paths=False))
            stack.enter_context(OriginalStatistics(net, own.active, records, by_variable))
        return output_tensors(net(*args, **kwargs))


def _distance(a: Tensor, b: Tensor) -> float:
    if not a.numel() or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
