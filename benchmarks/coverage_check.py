"""One net through everything that is claimed of any net: what coverage asks, and how each question is answered.

In: a ``Net`` of a zoo. Out: a plain dict, one entry a question: ``"ok"``, ``"n/a: why"``, or what went wrong. The
questions are those of the test suite, asked by the same functions.
"""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import netaug_fx
from benchmarks.coverage_maps import prove
from benchmarks.coverage_table import NOT_ASKED
from benchmarks.zoos import Inputs, Net
from netaug_fx.api import Compiled, compile_model, hand_over
from netaug_fx.errors import ExportError, NetAugError
from netaug_fx.passes import compare_outputs
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.growth import growing_share_of_macs, growing_share_of_weights, predicted_macs
from netaug_fx.passes.layout import shape
from netaug_fx.passes.macs import count
from netaug_fx.passes.observe import Names
from netaug_fx.passes.onnx_export import capture, write_onnx
from netaug_fx.passes.running import neutral
from netaug_fx.split import elastic_tensors
from netaug_fx.supernet import Supernet, control
from tests import invariants

RATIO = 1.5
SMALL_SIZES = (64, 96, 128, 160, 192)

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
        "maps": lambda: _maps(compiled, supernet, inputs, row),
        "step": lambda: _step(supernet, inputs),
        "extract": lambda: _extracted(supernet, model, inputs),
        "macs": lambda: _macs(tiny, model, inputs),
        "widest": lambda: _widest(compiled, supernet, inputs),
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
    except MemoryError:  # the net was not judged
        raise
    except Exception as error:  # whatever a net does here is an answer to be reported
        return f"{type(error).__name__}: {_short(error)}"


def _target(supernet: Supernet, model: nn.Module, inputs: Inputs) -> str:
    """Invariant 1: outputs, gradients, statistics and random numbers, in both modes."""
    invariants.assert_target_is_the_model(supernet, model, inputs)
    return "ok"


def _maps(compiled: Compiled, supernet: Supernet, inputs: Inputs, row: Answers) -> str:
    """Invariant 3, and how much of the net it was shown for."""
    proof = prove(compiled, supernet, inputs)
    row |= {"heard": None if proof.heard is None else round(proof.heard, 4), "scale_of_weights": proof.scale}
    return proof.answer


def _step(supernet: Supernet, inputs: Inputs) -> str:
    """One training step of both passes, after which the tiny net still is the target."""
    invariants.assert_a_step_trains_everything(supernet, inputs)
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


def _widest(compiled: Compiled, supernet: Supernet, inputs: Inputs) -> str:
    """At the widest every tensor has the plan's widest shape, and multiply-adds are those that the shares speak of."""
    plan = compiled.plan
    net = copy_model(supernet).eval().requires_grad_(False)  # with gradients torch's counter fails on given parameters
    widest = {var: plan.widest[number] for var, number in plan.numbers.items()}
    at_home = _counted(net, inputs)
    with Supernet.augmented(net, invariants.widest(net)):
        control(net).active.statistics = {}
        for module, tensor in elastic_tensors(net):
            found, expected = tuple(getattr(module, tensor.name).shape), shape(tensor.layouts, plan.widest)
            if tensor.dims and found != tuple(expected):
                return f"{tensor.full_name} has shape {found} instead of {tuple(expected)} at the widest"
        macs = _counted(net, inputs)
    analysis = compiled.analysis
    predicted = predicted_macs(analysis, widest)
    if at_home == predicted_macs(analysis, {}) and macs != predicted:
        return f"{macs} multiply-adds at the widest instead of {predicted}"
    return "ok"


def _counted(net: nn.Module, inputs: Inputs) -> int:
    with torch.no_grad(), neutral(fast_paths=False), FlopCounterMode(display=False) as counter:
        invariants.run(net, inputs)
    return int(counter.get_total_flops()) // 2


def _onnx(tiny: nn.Module, model: nn.Module, inputs: Inputs, folder: Path | None) -> str:
    """ONNX Runtime against PyTorch, where the untouched model itself exports and ONNX Runtime reproduces it."""
    if folder is None:
        return NOT_ASKED
    answer = exported(tiny, inputs, folder / "tiny.onnx")
    if answer == "ok":
        return "ok"
    of_model = exported(model, inputs, folder / "tiny.onnx")
    if _without_addresses(of_model) == _without_addresses(answer):
        return f"n/a: the untouched model: {of_model}"
    return f"{answer}; the untouched model: {of_model}"


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "", text)


def exported(model: nn.Module, inputs: Inputs, path: Path) -> str:
    """Exports to ONNX and holds ONNX Runtime against PyTorch; "ok" or what went wrong.

    Raises:
        MemoryError: it does not fit; that says nothing about the model.
    """
    try:
        captured = capture(model, copy.deepcopy(inputs), dynamic_batch=False)
        write_onnx(captured, path, optimize=False)
    except ExportError as error:
        first = _first_cause(error)
        if isinstance(first, MemoryError) or "allocate memory" in str(first):
            raise MemoryError(str(first)) from error
        return f"does not export: {type(first).__name__}: {_short(first)}"
    checks = compare_outputs.check_runtime(captured, path, 1e-4)
    return next((_short(check.detail) for check in checks if not check.passed), "ok")


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


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
        "groups_by_kind": dict(Counter(group.kind for group in plan.groups)),
        "mixing": sum(any(map(plan.grows, mixing.over)) for mixing in analysis.mixing),
        "opaque": len(analysis.opaque),
        "share_of_weights": round(growing_share_of_weights(model, analysis, plan), 4),
        "share_of_macs": round(growing_share_of_macs(analysis, plan), 4),
        "pins": [[number, *key] for key, number in merged.most_common()],
    }


def _timed(name: str, seconds: dict[str, float], run: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    try:
        return run()
    finally:
        seconds[name] = time.perf_counter() - start


def _short(error: Any, most: int = 300) -> str:
    return " ".join(str(error).split())[:most]
