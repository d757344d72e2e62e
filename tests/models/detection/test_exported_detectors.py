"""The detector without decoding: proven to be the one that went in, and equal in ONNX Runtime at an odd size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import netaug_fx
from netaug_fx.passes.onnx_export import export_onnx, run_onnx
from tests.models.detection.rendered import scenes, small


def test_an_extracted_detector_is_proven_without_decoding_too() -> None:
    model, (images, _) = small("yolo_scenes").eval(), scenes()
    tiny = netaug_fx.extract(netaug_fx.augment(model, 2, example_inputs=images))
    netaug_fx.verify(tiny, model, images, onnx=False).raise_if_failed()
    assert type(tiny) is type(model)


def test_raw_predictions_are_equal_in_onnx_runtime(tmp_path: Path) -> None:
    # 72 and 40 pixels: the coarse map is cut where the finer one ends.
    model, images = small("ssdlite_scenes").eval(), torch.randn(3, 1, 72, 40)
    path = export_onnx(model, tmp_path / "raw.onnx", images)
    with torch.no_grad():
        expected = model(images)
    for ours, theirs in zip(run_onnx(path, images), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
