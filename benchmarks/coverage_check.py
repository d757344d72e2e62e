"""One net through everything that is claimed of any net: what coverage asks, and how each question is answered.

In: a ``Net`` of a zoo. Out: a plain dict, one entry a question: ``"ok"``, ``"n/a: why"``, or what went wrong. The
questions are those of the test suite, asked by the same functions.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import netaug_fx
from benchmarks.coverage_table import NOT_ASKED
from benchmarks.zoos import Inputs, Net
from netaug_fx.api import Compiled, compile_model, hand_over
from netaug_fx.errors import ExportError, NetAugError
from netaug_fx.passes import compare_outputs
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.growth import growing_share_of_macs, growing_share_of_weights
from netaug_fx.passes.macs import count
from netaug_fx.passes.observe import Names
from netaug_fx.passes.onnx_export import capture, write_onnx
from netaug_fx.passes.running import neutral, output_tensors
from netaug_fx.supernet import Supernet, control
from tests import invariants
from tests.original_statistics import DoubleThroughout, OriginalStatistics
from tests.wirings.registry import randomise

RATIO = 1.5
SMALL_SIZES = (64, 96, 128, 160, 192)
TOLERANCE = 1e-6

Answers = dict[str, Any]


def check_net(net: Net, folder: Path | None = None, seed: int = 0) -> Answers:
    """Asks every question of one net.

    Args:
        net: The net; built here, with weights drawn from ``seed``.
        folder: Where its ONNX file may be written; without, it is not exported.
        seed: Of the weights, the extra weights and the widths drawn.

    Returns:
        ``counted`` (True if every question was answered with "ok" or "n/a"), ``checks`` by question, and what is
        known of the net: parameters, input, groups, pins, shares of weights and multiply-adds that can grow.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    model = net.build()
    row: Answers = {"params": sum(p.numel() for p in model.parameters()), "checks": {}}
    seconds: dict[str, float] = {}
    inputs = _timed("input", seconds, lambda: smaller_inputs(model, net.inputs(model)))
    row["input"] = [list(t.shape) for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    try:
        compiled = _timed("compile", seconds, lambda: compile_model(model, RATIO, example_inputs=inputs, seed=seed))
        supernet = _timed("target", seconds, lambda: hand_over(compiled, seed))
    except NetAugError as error:
        return {**row, "counted": False, "refused": f"{type(error).__name__}: {_short(error)}", "seconds": seconds}
    row |= _described(compiled, model)
    questions: dict[str, Callable[[], str]] = {
        "target": lambda: _target(supernet, model, inputs),
        "maps": lambda: _maps(compiled, supernet, inputs),
        "step": lambda: _step(supernet, inputs),
        "extract": lambda: _extracted(supernet, model, inputs),
        "macs": lambda: _macs(tiny, model, inputs),
        "onnx": lambda: _onnx(tiny, model, inputs, folder),
    }
    tiny = netaug_fx.extract(supernet)
    for name, question in questions.items():
        row["checks"][name] = _timed(name, seconds, lambda question=question: _answer(question))  # type: ignore[misc]
    row["counted"] = all(answer == "ok" or answer.startswith("n/a") for answer in row["checks"].values())
    row["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    return row


def smaller_inputs(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs with images made smaller, where the model then runs the very same operators; else as they are.

    Only square images are made smaller, to the smallest of ``SMALL_SIZES`` that changes nothing but sizes.
    """
    args, kwargs = inputs
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 4:
        return inputs
    image = args[0]
    if image.shape[2] != image.shape[3] or image.shape[2] <= SMALL_SIZES[0]:
        return inputs
    try:
        expected = _operators(model, image)
    except Exception:  # compiling will say what is wrong
        return inputs
    for size in (size for size in SMALL_SIZES if size < image.shape[2]):
        smaller = image[:, :, :size, :size].contiguous()
        try:
            if _operators(model, smaller) == expected:
                return (smaller,), {}
        except Exception:  # a net for one size only
            continue
    return inputs


def _operators(model: nn.Module, image: Tensor) -> list[str]:
    copied, mode = copy_model(model), Names()
    with neutral(fast_paths=False), mode:
        for training in (False, True):
            copied.train(training)(image)
    return mode.seen


# -- the questions ---------------------------------------------------------------------------------


def _answer(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:  # whatever a net does here is an answer to be reported
        return f"{type(error).__name__}: {_short(error)}"


def _target(supernet: Supernet, model: nn.Module, inputs: Inputs) -> str:
    """Invariant 1: outputs, gradients, statistics and random numbers, in both modes."""
    invariants.assert_target_is_the_model(supernet, model, inputs)
    return "ok"


def _maps(compiled: Compiled, supernet: Supernet, inputs: Inputs) -> str:
    """Invariant 3 at the widest and at random widths, in float64, with every weight awake.

    Norms across channels take their statistics from the original's channels (``tests/original_statistics.py``). Last,
    the extra-to-target weights are drawn, and the outputs must change: a test that cannot fail proves nothing.

    Where a deep residual net's activations grow from block to block, so does the rounding of sums in another order
    (EfficientNetV2-M: from 1e-15 to 1e-2, by a factor of up to 30 in a block); a net that fails is asked once more with
    weights half as large, which a wrong map does not survive either.
    """
    answer = ""
    for scale in (1.0, 0.5):
        answer = _maps_with(randomise(copy_model(supernet).double().eval()), scale, compiled, inputs)
        if answer == "ok":
            break
    return answer


def _maps_with(net: Any, scale: float, compiled: Compiled, inputs: Inputs) -> str:
    """The answer for one draw of all weights, matrices and filters times ``scale``."""
    with torch.no_grad():
        for parameter in net.parameters():
            if max(parameter.shape, default=1) != parameter.numel():
                parameter.mul_(scale)
    inputs = invariants.as_double(inputs)
    blocks = list(invariants.contracted_blocks(net))
    drawn = [block.detach().clone() for block in blocks]
    invariants.zero_extra_to_target_(net)
    expected = _outputs(compiled, net, inputs, None)
    if not all(torch.isfinite(t).all() for t in expected if t.is_floating_point()):
        return "the target's own outputs are not finite"
    for widths in _assignments(net):
        for a, b in zip(_outputs(compiled, net, inputs, widths), expected, strict=True):
            if a.shape != b.shape:
                return f"shape {tuple(a.shape)} instead of {tuple(b.shape)}"
            if (apart := _distance(a, b)) > TOLERANCE:
                return f"outputs {apart:.1e} apart at {'the widest' if widths == invariants.widest(net) else widths}"
    if _are_heard(compiled, net, inputs, blocks, drawn, expected):
        return "ok"
    return "extra channels reach no output, so that nothing was proven"


def _are_heard(
    compiled: Compiled, net: Any, inputs: Inputs, blocks: list[Tensor], drawn: list[Tensor], silent: list[Tensor]
) -> bool:
    """Whether outputs change once the extra-to-target weights are drawn; tried again where all of them may be rectified
    away."""
    for attempt in range(4):
        scale = (-1.0) ** attempt * 2.0 ** (attempt // 2)
        with torch.no_grad():
            for block, values in zip(blocks, drawn, strict=True):
                block.copy_(values * scale)
        heard = _outputs(compiled, net, inputs, invariants.widest(net))
        if any(_distance(a, b) > TOLERANCE for a, b in zip(heard, silent, strict=True)):
            return True
    return False


def _assignments(net: Supernet) -> Iterator[dict[str, int]]:
    _base, *others = invariants.assignments(net, count=1)
    yield from others


def _outputs(compiled: Compiled, net: Supernet, inputs: Inputs, widths: dict[str, int] | None) -> list[Tensor]:
    own = control(net)
    records = compiled.analysis.operators[False]
    with torch.no_grad(), ExitStack() as stack:
        assignment = compiled.plan.base if widths is None else own.as_widths(widths)
        by_variable = {var: assignment[number] for var, number in compiled.plan.numbers.items()}
        if widths is not None:
            stack.enter_context(Supernet.augmented(net, widths))
            stack.enter_context(invariants.statistics_of_the_target(net))
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
        torch.manual_seed(0)
        stack.enter_context(DoubleThroughout())
        if any(record.mixes for record in records):
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


def _step(supernet: Supernet, inputs: Inputs) -> str:
    """One training step of both passes: gradients are finite, and every extra weight has one."""
    net = copy_model(supernet).train()
    invariants.loss(invariants.run(net, inputs)).backward()
    invariants.assert_augmented_step_reaches_everything(net, inputs)
    for name, parameter in net.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name} is not finite"
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    return "ok"


def _extracted(supernet: Supernet, model: nn.Module, inputs: Inputs) -> str:
    """Invariant 2."""
    invariants.assert_extract_restores(supernet, model, inputs)
    return "ok"


def _macs(tiny: nn.Module, model: nn.Module, inputs: Inputs) -> str:
    """Multiply-adds of every module, by two counters."""
    ours, theirs = count(tiny, inputs), count(model, inputs)
    if (ours.macs, ours.torch_macs, ours.by_module) == (theirs.macs, theirs.torch_macs, theirs.by_module):
        return "ok"
    return f"{ours.macs} and {ours.torch_macs} instead of {theirs.macs} and {theirs.torch_macs}"


def _onnx(tiny: nn.Module, model: nn.Module, inputs: Inputs, folder: Path | None) -> str:
    """ONNX Runtime against PyTorch, where the untouched model itself exports and ONNX Runtime reproduces it."""
    if folder is None:
        return NOT_ASKED
    answer = exported(tiny, inputs, folder / "tiny.onnx")
    if answer == "ok":
        return "ok"
    of_model = exported(model, inputs, folder / "original.onnx")
    return answer if of_model == "ok" else f"n/a: the untouched model: {of_model}"


def exported(model: nn.Module, inputs: Inputs, path: Path) -> str:
    """Exports to ONNX and holds ONNX Runtime against PyTorch; "ok" or what went wrong."""
    try:
        captured = capture(model, copy.deepcopy(inputs), dynamic_batch=False)
        write_onnx(captured, path, optimize=False)
    except ExportError as error:
        return f"does not export: {_short(error)}"
    checks = compare_outputs.check_runtime(captured, path, 1e-4)
    return next((_short(check.detail) for check in checks if not check.passed), "ok")


# -- what is known of a net ------------------------------------------------------------------------


def _described(compiled: Compiled, model: nn.Module) -> Answers:
    plan, analysis = compiled.plan, compiled.analysis
    reasons = Counter(
        (pin.reason, pin.op, pin.location.rpartition("/")[2], pin.module)
        for pin in plan.pins
        if not pin.reason.startswith(("it is a kernel size", "it is a dimension of the model's"))
    )
    merged = Counter[tuple[str, str, str]]()
    for (reason, op, place, _module), number in reasons.items():
        merged[reason[:160], op, place] += number
    return {
        "groups": len(plan.groups),
        "mixing": sum(any(map(plan.grows, mixing.over)) for mixing in analysis.mixing),
        "opaque": len(analysis.opaque),
        "share_of_weights": round(growing_share_of_weights(model, analysis, plan), 4),
        "share_of_macs": round(growing_share_of_macs(analysis, plan), 4),
        "pins": [[number, *key] for key, number in merged.most_common(5)],
    }


def _timed(name: str, seconds: dict[str, float], run: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    try:
        return run()
    finally:
        seconds[name] = time.perf_counter() - start


def _short(error: Any, most: int = 300) -> str:
    return " ".join(str(error).split())[:most]
