"""The detector that comes out is proven to be the one that went in, and runs in ONNX Runtime with decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.models.detection import Decoded, select
from netaug_fx.passes.onnx_export import run_onnx
from tests.models.detection.rendered import SIDE, scenes, small


@pytest.mark.parametrize("name", ["yolo_scenes", "ssdlite_scenes"])
def test_an_extracted_detector_is_proven_and_decodes_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    model, (images, _) = small(name).eval(), scenes()
    for each in model.head.modules():  # sure of some things, as a trained net is
        if isinstance(each, nn.Conv2d) and each.bias is not None:
            nn.init.normal_(each.weight, std=0.3)
            nn.init.normal_(each.bias)
    tiny = netaug_fx.extract(netaug_fx.augment(model, 2, example_inputs=images))
    decoded = netaug_fx.verify(Decoded(tiny), Decoded(model), images, folder=tmp_path)
    decoded.raise_if_failed()
    assert {check.name for check in decoded.checks} >= {"graph", "onnx structure", "onnx runtime"}
    assert not any("not applicable" in check.detail for check in decoded.checks)
    # From one image, though the example had four; what is reported is the same as without ONNX.
    boxes, scores = (torch.from_numpy(each) for each in run_onnx(tmp_path / "tiny.onnx", images[1:2]))
    (theirs,) = select(boxes, scores, score_threshold=0.3)
    (ours,) = tiny.detect(tiny(images[1:2]), (SIDE, SIDE), score_threshold=0.3)
    assert len(ours["boxes"]) > 0
    assert torch.equal(ours["labels"], theirs["labels"])
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-3, atol=1e-2)
