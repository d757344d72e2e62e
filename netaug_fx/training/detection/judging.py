"""A delivered detector on the validation images: what it finds in each, and its ONNX files on the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.errors import ExportError
from netaug_fx.models.detection import Decoded, Detector
from netaug_fx.passes.compare_outputs import distance
from netaug_fx.passes.onnx_export import export_onnx, run_onnx
from netaug_fx.passes.report import Check
from netaug_fx.training.checkpoint import writing
from netaug_fx.training.detection.annotations import Target
from netaug_fx.training.detection.changes import squared
from netaug_fx.training.detection.detect_config import AnswerConfig
from netaug_fx.training.detection.detection_task import DetectionTask
from netaug_fx.training.detection.objective import Detection, at_own_size, detections

_BATCH = 32
_COMPARED = 4  # images that ONNX Runtime is given, one at a time
_TOLERANCE = 1e-4


@torch.no_grad()
def found_by(
    net: nn.Module, task: DetectionTask, answers: AnswerConfig, indices: Sequence[int]
) -> Iterator[tuple[Detection, Target]]:
    """Detections and target of validation images, in pixels of the images at their own size.

    Args:
        net: A detector in eval mode, on the CPU.
        task: The images.
        answers: Which detections count.
        indices: Of the validation images.
    """
    for start in range(0, len(indices), _BATCH):
        pictures, targets = [], []
        for picture, target in task.val.samples(indices[start : start + _BATCH]):
            square, target = squared(picture, target, task.image_size)
            pictures.append(square)
            targets.append({**target, "size": torch.tensor(picture.shape[-2:])})
        images = task.normalised(pictures)
        found = detections(net, net(images), images, answers, len(task.classes))
        for each, target in zip(found, targets, strict=True):
            yield at_own_size(each, target, task.image_size)


def export_decoded(net: nn.Module, file: Path, image: Tensor, opset: int | None) -> str | None:
    """Writes a detector of the zoo as ONNX with decoding in the graph, which gives boxes and scores.

    Returns:
        Why there is no file, where there is none.
    """
    if not isinstance(net, Detector):
        return f"{type(net).__name__} is no netaug_fx.models.detection.Detector, whose decoding is known"
    try:
        with writing(file):
            export_onnx(Decoded(net).eval(), file, (image,), opset=opset)
    except ExportError as error:
        return str(error)
    return None


@torch.no_grad()
def check_files(net: nn.Module, files: Mapping[str, Path], task: DetectionTask) -> list[Check]:
    """Whether ONNX Runtime gives what PyTorch does, on validation images.

    Args:
        net: The detector in eval mode, on the CPU.
        files: ``onnx on images`` for the predictions, ``decoded onnx on images`` with decoding; those that exist.
        task: The images.
    """
    images = task.example(_COMPARED)
    checks = []
    for name, file in files.items():
        model = Decoded(net) if name.startswith("decoded") and isinstance(net, Detector) else net
        checks.append(_check(name, model, file, images))
    return checks


def _check(name: str, model: nn.Module, file: Path, images: Tensor) -> Check:
    worst = 0.0
    for number in range(len(images)):
        image = images[number : number + 1]
        expected = [t.numpy() for t in pytree.tree_leaves(model(image)) if isinstance(t, Tensor)]
        try:
            actual = run_onnx(file, image)
        except ExportError as error:
            return Check(name, False, f"could not run: {error}")
        shapes = [[list(np.shape(each)) for each in outputs] for outputs in (expected, actual)]
        if shapes[0] != shapes[1]:
            return Check(name, False, f"image {number}: other shapes", str(shapes[0]), str(shapes[1]))
        if any(np.isnan(a).any() != np.isnan(b).any() for a, b in zip(actual, expected, strict=True)):
            return Check(name, False, f"image {number}: values that are no numbers on one side alone")
        worst = max([worst, *map(distance, actual, expected)])
    passed = worst <= _TOLERANCE
    return Check(name, passed, f"{len(images)} validation images: at most {worst:.1e} of the largest value apart")


def as_rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Checks as JSON values, as ``verify`` reports them."""
    return [
        {"name": c.name, "passed": c.passed, "detail": c.detail, "expected": c.expected, "actual": c.actual}
        for c in checks
    ]
