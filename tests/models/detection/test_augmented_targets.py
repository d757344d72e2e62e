"""The paper's five targets as detectors through the compiler: all of them grow, and every index map is right."""

from __future__ import annotations

import pytest
import torch

import netaug_fx
from tests import invariants
from tests.models.detection.rendered import scenes, small

# Each target once, each head more than once.
NAMES = (
    "yolo_mobilenet_v2_tiny",
    "ssdlite_mobilenet_v2_035",
    "yolo_mobilenet_v3_035",
    "ssdlite_proxylessnas_035",
    "yolo_mcunet",
)


@pytest.mark.parametrize("name", NAMES)
def test_all_of_a_target_grows_and_every_width_gives_it_when_extras_are_zeroed(name: str) -> None:
    model, (images, targets) = small(name, channels=1).eval(), scenes(2)
    supernet = netaug_fx.augment(model, 2, example_inputs=images)
    growing = {tensor.full_name for _, tensor in invariants.elastic_tensors(supernet) if tensor.dims}
    assert {name for name, parameter in model.named_parameters() if parameter.dim() > 1} <= growing
    invariants.assert_zeroed_extras_give_the_target(supernet, ((images,), {}))
    theirs, ours = model(images, targets), supernet(images, targets)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    with supernet.augmented():
        assert all(loss.isfinite() for loss in supernet(images, targets).values())
    invariants.assert_equal(list(netaug_fx.extract(supernet)(images)), list(model(images)), "extracted")
