"""Outputs of two models, and of a model and its ONNX file, on random inputs.

In: flat models or a capture with its file. Out: ``Check``s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netaug_fx.errors import ExportError
from netaug_fx.passes.flatten import FlatModel, batched, with_batch
from netaug_fx.passes.onnx_export import Capture, run_onnx
from netaug_fx.passes.report import Check
from netaug_fx.passes.untouched import untouched

Array = np.ndarray[Any, Any]
BATCHES = (1, 3)
DRAWS = 2  # random inputs at each batch size


def check_forward(tiny: FlatModel, original: FlatModel, tolerance: float) -> Check:
    """Whether two models with the same weights give the same outputs, the same random numbers drawn on the way."""
    worst = 0.0
    tensors = tiny.inputs
    for draw in range(DRAWS + 1):
        seed = 1000 + draw
        ours, theirs = (_seeded(model, tensors, seed) for model in (tiny, original))
        problem = _problem(ours, theirs, tolerance, tuple(str(index) for index in range(len(theirs))))
        if problem:
            return Check("forward", False, f"the original's code with the same weights gives other outputs: {problem}")
        worst = max([worst, *(distance(a, b) for a, b in zip(ours, theirs, strict=True))])
        tensors = random_like(tiny.inputs, torch.Generator().manual_seed(seed))
    exact = "bit for bit" if worst == 0 else f"to {worst:.1e}, not bit for bit"
    return Check("forward", True, f"the original's code with the same weights gives the same outputs, {exact}")


def check_runtime(captured: Capture, path: Path, tolerance: float) -> list[Check]:
    """Whether ONNX Runtime computes what PyTorch does, on several random inputs at two batch sizes."""
    values, winners = Check("onnx runtime", True), Check("onnx argmax", True)
    tried: list[str] = []
    worst, decisions = 0.0, 0
    try:
        for label, tensors, expected in _runs(captured):
            actual = run_onnx(path, tensors)
            problem = _problem(actual, expected, tolerance, captured.output_names)
            if problem and values.passed:
                values = Check("onnx runtime", False, f"{label}: {problem}", f"within {tolerance:g}", "further apart")
            for name, ours, theirs in zip(captured.output_names, actual, expected, strict=False):
                if ours.shape == theirs.shape:
                    worst = max(worst, distance(ours, theirs))
                    differing, total = _differing_winners(ours, theirs, tolerance)
                    decisions += total
                    if differing and winners.passed:
                        found = f"{total - differing} of {total}"
                        winners = Check("onnx argmax", False, f"{label}, output {name}", f"all {total} equal", found)
            tried.append(label)
    except ExportError as error:
        return [Check(name, False, f"could not run: {error}") for name in (values.name, winners.name)]
    runs = f"{len(tried)} runs ({', '.join(dict.fromkeys(label.split(',')[0] for label in tried))})"
    if values.passed:
        values = Check(
            values.name, True, f"{runs}: within {tolerance:g}, at most {worst:.1e} of the largest value apart"
        )
    elif winners.passed and not decisions:
        winners = Check(winners.name, False, "could not run: the outputs have other shapes than PyTorch's")
    if winners.passed:
        winners = Check(winners.name, True, f"{runs}: {decisions} decisions, all equal")
    return [values, winners]


def random_like(tensors: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random tensors of the same shapes, types and ranges: normal, or uniform over the integers that occur.

    Integers that are all 0 or 1 stay: they are masks, and one of zeros alone leaves a softmax nothing to choose from.
    """
    return tuple(_random_like(tensor, generator) for tensor in tensors)


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dtype == torch.bool or tensor.numel() == 0 or tensor.is_complex():
        return tensor
    if not tensor.is_floating_point():
        low, high = int(tensor.min()), int(tensor.max())
        if low >= 0 and high <= 1:
            return tensor
        return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor)
    values = tensor.detach().double()
    spread = float(values.std(correction=0)) if tensor.numel() > 1 else 0.0
    spread = spread if 0 < spread < float("inf") else 1.0
    return (torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * spread + float(values.mean())).to(
        tensor
    )


def _runs(captured: Capture) -> Iterator[tuple[str, tuple[Tensor, ...], list[Array]]]:
    """Inputs and PyTorch's outputs; the example's batch alone where it is not free."""
    size = next(
        (t.shape[0] for t, has_batch in zip(captured.inputs, batched(captured.inputs), strict=True) if has_batch), 0
    )
    sizes = _batch_sizes(captured) if any(captured.dynamic) else (size,)
    for batch in sizes:
        example = with_batch(captured.inputs, batch) if any(captured.dynamic) else captured.inputs
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(100 * batch + draw)
            tensors = random_like(example, generator)
            label = f"batch {batch}, random input {draw + 1}"
            if (expected := _tried(captured.flat, tensors)) is None:  # inputs with a meaning, such as sorted lengths
                tensors, label = example, f"batch {batch}, the example input"
                expected = _tried(captured.flat, tensors)
            if expected is None:  # inputs whose first dimension is no batch
                tensors, label = captured.inputs, "the example input"
                expected = _seeded(captured.flat, tensors, 0)
            yield label, tensors, expected


def _tried(flat: FlatModel, tensors: tuple[Tensor, ...]) -> list[Array] | None:
    """The outputs, or None if the forward cannot take these inputs."""
    try:
        return _seeded(flat, tensors, 0)
    except Exception:  # any code may run in a user's forward
        return None


def _batch_sizes(captured: Capture) -> tuple[int, ...]:
    """Without 1 where the forward squeezes a batch of one away, which no exported graph can follow."""
    ranks = []
    for batch in BATCHES:
        try:
            ranks.append([output.ndim for output in _seeded(captured.flat, with_batch(captured.inputs, batch), 0)])
        except Exception:  # a forward that cannot take this batch
            ranks.append([])
    return BATCHES if ranks[0] == ranks[1] else (2, 3)


def _seeded(flat: FlatModel, tensors: tuple[Tensor, ...], seed: int) -> list[Array]:
    with untouched(flat.model):
        torch.manual_seed(seed)
        # Copies, since a forward may write to its inputs.
        outputs = flat(*(tensor.clone() for tensor in tensors))
    return [_numpy(output) for output in outputs]


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _problem(actual: list[Array], expected: list[Array], tolerance: float, names: tuple[str, ...]) -> str:
    if len(actual) != len(expected):
        return f"{len(actual)} outputs, expected {len(expected)}"
    for name, ours, theirs in zip(names, actual, expected, strict=True):
        if ours.shape != theirs.shape:
            return f"output {name} has shape {ours.shape}, expected {theirs.shape}"
        if not np.allclose(ours, theirs, rtol=tolerance, atol=tolerance * _scale(theirs) + 1e-7, equal_nan=True):
            return f"output {name} differs by up to {distance(ours, theirs):.1e} of its largest value"
    return ""


def _scale(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)]) if array.size else array
    return float(finite.max()) if finite.size else 0.0


def distance(actual: Array, expected: Array) -> float:
    """The largest difference over the largest value expected."""
    if not expected.size or np.array_equal(actual, expected, equal_nan=expected.dtype.kind in "fc"):
        return 0.0
    wide = actual.astype(np.float64) - expected.astype(np.float64)
    apart = float(np.nanmax(np.abs(wide))) if np.isfinite(wide).any() else float("inf")
    return apart / (_scale(expected) or 1.0)


def _differing_winners(actual: Array, expected: Array, tolerance: float) -> tuple[int, int]:
    """How many largest entries are at another place, and how many there are; near ties count as equal.

    Classes are the last dimension, or the second of pictures (rank 4 or 5).
    """
    if expected.ndim == 0 or expected.size == 0 or expected.dtype.kind not in "fiu":
        return 0, 0
    axis = 1 if expected.ndim >= 4 else expected.ndim - 1
    ours, theirs = (np.expand_dims(array.argmax(axis), axis) for array in (actual, expected))
    lost = np.take_along_axis(expected, theirs, axis) - np.take_along_axis(expected, ours, axis)
    return int((lost > tolerance / 10 * _scale(expected)).sum()), int(lost.size)
