"""Verify: is this extracted net the net that was augmented, in everything but the values of its weights?

In: the extracted model and the original. Out: a ``Report``. Every question is asked of the two models themselves, by
tools that know nothing of how supernets work, so that a mistake in the compiler cannot hide in its own check.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netaug_fx.errors import ExportError, InputError, NetAugError
from netaug_fx.passes import compare_outputs
from netaug_fx.passes.compare_graphs import LabelledGraph, difference, from_modules, from_onnx, from_program
from netaug_fx.passes.compare_modules import borrowed_tensors, check_class, check_modules, check_state
from netaug_fx.passes.compare_split import check_fit
from netaug_fx.passes.extract import extract
from netaug_fx.passes.flatten import flat_model, with_batch
from netaug_fx.passes.macs import MacCount, count
from netaug_fx.passes.onnx_export import Capture, capture, write_onnx
from netaug_fx.passes.report import Check, Report
from netaug_fx.passes.running import seldom_collected
from netaug_fx.passes.untouched import untouched
from netaug_fx.supernet import control, is_supernet


@dataclass
class _Pair:
    """The two models and what the checks have made of them so far."""

    tiny: nn.Module
    model: nn.Module
    inputs: Any
    tolerance: float
    folder: Path
    free_batch: bool  # ONNX needs it; without, capturing takes half as long
    same_tensors: bool = True  # the state_dicts agree, so one model can be given the other's weights
    captures: dict[str, Capture | ExportError] = field(default_factory=dict)
    counts: list[MacCount] = field(default_factory=list)


@seldom_collected()
def verify(
    tiny: nn.Module,
    model: nn.Module,
    example_inputs: Any = None,
    *,
    tolerance: float | None = None,
    onnx: bool = True,
    folder: str | os.PathLike[str] | None = None,
) -> Report:
    """Compares an extracted model with the original, and with its own ONNX export; neither model is changed.

    The weights of the two differ in general and are not compared. Where a question needs equal weights, the original
    is given the tiny model's for as long as the check runs.

    Args:
        tiny: The extracted model.
        model: The model that was augmented; or for a slim net the supernet that ``evolve`` returned.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. None looks for one.
        tolerance: How far ONNX Runtime's outputs may be from PyTorch's: relative to each value, plus the same
            fraction of the largest value. None takes 1e-4, and 2e-2 for half precision.
        onnx: Whether to export both models to ONNX, compare the files, and run the tiny model's; most of the time.
        folder: Where to leave ``tiny.onnx`` and ``original.onnx``. None leaves no files.

    Returns:
        The report, with the checks "class", "state_dict", "modules", "forward" (the original's code with the tiny
        model's weights gives the tiny model's outputs), "graph", "parameters", "macs", and with ``onnx`` "onnx
        structure", "onnx runtime" and "onnx argmax". A slim net is held against one cut out of the supernet, and by
        "fit hypothesis" against the dense net with the weights zeroed that lead from the reset hypothesis to it.

    Raises:
        InputError: ``tiny`` is a supernet, an argument is no module, or the inputs do not fit the original.
    """
    supernet = model if _is_split(model) else None
    if supernet is not None:
        model = extract(supernet)
    _refuse(tiny, model, tolerance)
    inputs = _example(model, example_inputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(untouched(tiny, model))
        where = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pair = _Pair(tiny, model, inputs, _tolerance(tiny, tolerance), where, bool(onnx))
        checks = [_guarded("class", check_class, pair), _guarded("state_dict", check_state, pair)]
        pair.same_tensors = checks[-1].passed
        for name, run in _CHECKS.items():
            checks.append(_guarded(name, run, pair))
        if supernet is not None:
            checks.append(_guarded("fit hypothesis", check_fit, tiny, supernet, inputs, pair.tolerance))
        if onnx:
            checks += _onnx_checks(pair)
    counted = pair.counts[0] if pair.counts else None
    return Report(
        model=type(tiny).__name__,
        checks=tuple(checks),
        macs=counted.macs if counted else None,
        params=sum(parameter.numel() for parameter in tiny.parameters()),
        macs_include=counted.includes if counted else "",
    )


# -- arguments -------------------------------------------------------------------------------------


def _is_split(model: Any) -> bool:
    return is_supernet(model) and control(model).split is not None


def _refuse(tiny: nn.Module, model: nn.Module, tolerance: float | None) -> None:
    for name, module in (("tiny", tiny), ("model", model)):
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{name}: expected a torch.nn.Module, found {type(module).__name__}; pass the model itself"
            )
        if is_supernet(module):
            raise InputError(
                f"{name} is a supernet (an augmented {type(module).__name__}); verify compares plain models: "
                + ("pass netaug_fx.extract(supernet)" if name == "tiny" else "pass the model that was augmented")
            )
    if tolerance is not None and not tolerance >= 0:
        raise InputError(f"tolerance={tolerance}: expected a number of at least 0, such as 1e-4")
    devices = [next((str(tensor.device) for tensor in module.parameters()), "cpu") for module in (tiny, model)]
    if devices[0] != devices[1]:
        raise InputError(f"tiny is on {devices[0]} and model on {devices[1]}: move both to one device with .to()")


def _example(model: nn.Module, example_inputs: Any) -> Any:
    """The inputs as (args, kwargs), found if not given, once tried on the original."""
    flat = flat_model(model, example_inputs)
    tensors = with_batch(flat.inputs, 1) if example_inputs is None else flat.inputs
    try:
        with untouched(model):
            flat(*tensors)
    except Exception as error:  # any code may run in a user's forward
        raise InputError(
            f"example_inputs: the original {type(model).__name__} does not run on them: "
            f"{type(error).__name__}: {error}; pass inputs that its forward takes"
        ) from error
    return flat.arguments(*tensors)


def _tolerance(tiny: nn.Module, tolerance: float | None) -> float:
    if tolerance is not None:
        return tolerance
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in tiny.parameters())
    return 2e-2 if half else 1e-4


# -- the checks ------------------------------------------------------------------------------------


def _guarded(name: str, run: Callable[..., Check], *arguments: Any) -> Check:
    """A check that cannot run has failed, and says why."""
    try:
        return run(*arguments)
    except NetAugError as error:
        return Check(name, False, f"could not run: {error}")
    except Exception as error:  # a broken model may raise anything, and the other checks should still be made
        return Check(name, False, f"could not run: {type(error).__name__}: {error}")


@contextlib.contextmanager
def _original(pair: _Pair) -> Iterator[nn.Module]:
    """The original, with the tiny model's tensors if they fit: then not even a value-dependent step can differ."""
    if pair.same_tensors:
        with borrowed_tensors(pair.model, pair.tiny):
            yield pair.model
    else:
        yield pair.model


def _check_forward(pair: _Pair) -> Check:
    if not pair.same_tensors:
        return Check("forward", False, "could not run: the state_dicts differ, so the weights do not fit")
    with _original(pair) as original:
        # The same sums in the same order: far closer than another runtime comes.
        ours, theirs = (flat_model(model, pair.inputs) for model in (pair.tiny, original))
        return compare_outputs.check_forward(ours, theirs, pair.tolerance / 100)


def _check_graph(pair: _Pair) -> Check:
    """Exported programs; where the original has none, each module's own forward as torch.fx sees it."""
    with _original(pair) as original:
        for name, model in (("original", original), ("tiny", pair.tiny)):
            pair.captures[name] = _capture(model, pair)
        theirs, ours = pair.captures["original"], pair.captures["tiny"]
        if isinstance(theirs, Capture) and isinstance(ours, Capture):
            graphs = [from_program(ours.program), from_program(theirs.program)]
            how = "torch.export graphs" + (", free batch" if any(theirs.dynamic) else ", fixed batch")
        elif isinstance(theirs, Capture) or isinstance(ours, Capture):
            failure = ours if isinstance(ours, ExportError) else theirs
            which = "tiny model" if isinstance(ours, ExportError) else "original"
            return Check("graph", False, f"only the {which} cannot be exported: {failure}")
        else:
            graphs = [from_modules(pair.tiny), from_modules(original)]
            how = f"torch.fx graphs of each module, since the original cannot be exported ({_short(theirs)})"
    return _compared("graph", graphs, how)


def _compared(name: str, graphs: list[LabelledGraph], how: str) -> Check:
    found = difference(*graphs)
    sizes = [f"{len(graph.vertices)} vertices" for graph in graphs]
    if found is None:
        return Check(name, True, f"{how}: isomorphic, {sizes[0]}", sizes[1], sizes[0])
    return Check(name, False, f"{how}: {found}", "an isomorphic graph", "another graph")


def _capture(model: nn.Module, pair: _Pair) -> Capture | ExportError:
    """Captured with a free batch, or with the example's where the forward fixes it, or the reason why not."""
    if pair.free_batch:
        with contextlib.suppress(ExportError):
            return capture(model, pair.inputs)
    try:
        return capture(model, pair.inputs, dynamic_batch=False)
    except ExportError as error:
        return error


def _check_parameters(pair: _Pair) -> Check:
    ours, theirs = (sum(parameter.numel() for parameter in model.parameters()) for model in (pair.tiny, pair.model))
    trainable = [[name for name, p in m.named_parameters() if p.requires_grad] for m in (pair.tiny, pair.model)]
    frozen = "" if trainable[0] == trainable[1] else "; requires_grad differs, which changes nothing at inference"
    return Check("parameters", ours == theirs, f"{ours:,} elements{frozen}", f"{theirs:,}", f"{ours:,}")


def _check_macs(pair: _Pair) -> Check:
    ours = count(pair.tiny, pair.inputs)
    pair.counts.append(ours)
    theirs = count(pair.model, pair.inputs)
    equal = (ours.macs, ours.torch_macs, ours.by_module) == (theirs.macs, theirs.torch_macs, theirs.by_module)
    detail = f"{ours.macs:,} by fvcore and {ours.torch_macs:,} by torch's counter, in both models"
    if not equal:
        paths = [path for path, macs in theirs.by_module.items() if ours.by_module.get(path) != macs]
        detail = f"first in module {next((path for path in paths if path), '(root)')!r}" if paths else "by operator"
    expected, actual = (f"{c.macs:,} (fvcore) and {c.torch_macs:,} (torch)" for c in (theirs, ours))
    return Check("macs", equal, detail, expected, actual)


_CHECKS: dict[str, Callable[[_Pair], Check]] = {
    "modules": check_modules,
    "forward": _check_forward,
    "graph": _check_graph,
    "parameters": _check_parameters,
    "macs": _check_macs,
}


# -- ONNX ------------------------------------------------------------------------------------------


def _onnx_checks(pair: _Pair) -> list[Check]:
    names = ("onnx structure", "onnx runtime", "onnx argmax")
    theirs, ours = pair.captures.get("original"), pair.captures.get("tiny")
    if isinstance(theirs, ExportError):
        return [Check(name, True, f"not applicable: the original model does not export: {theirs}") for name in names]
    if not isinstance(ours, Capture) or not isinstance(theirs, Capture):
        return [Check(name, False, f"could not run: {ours or 'the graph check stopped early'}") for name in names]
    path = pair.folder / "tiny.onnx"
    try:
        write_onnx(ours, path)
    except ExportError as error:
        reason = _untranslatable(pair, theirs)
        if reason is not None:
            text = f"not applicable: the original model does not export: {reason}"
            return [Check(name, True, text) for name in names]
        return [Check(name, False, f"could not run: only the tiny model does not export: {error}") for name in names]
    structure = _guarded(names[0], _check_structure, pair, path, theirs)
    return [structure, *compare_outputs.check_runtime(ours, path, pair.tolerance)]


def _untranslatable(pair: _Pair, captured: Capture) -> ExportError | None:
    try:
        with _original(pair):
            write_onnx(captured, pair.folder / "original.onnx")
    except ExportError as error:
        return error
    return None


def _check_structure(pair: _Pair, path: Path, original: Capture) -> Check:
    other = pair.folder / "original.onnx"
    with _original(pair):
        write_onnx(original, other)
    return _compared("onnx structure", [from_onnx(path), from_onnx(other)], "ONNX files of both")


def _short(error: Any) -> str:
    return " ".join(str(error).split())[:200]
