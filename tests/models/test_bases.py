"""GhostNet and EfficientNet-B0 through the compiler: what is to be enlarged must be analysed and widened."""

from __future__ import annotations

import pytest
import torch

import netaug_fx
from netaug_fx import models
from netaug_fx.candidates import Move, enlarged, net_of
from tests import invariants


@pytest.mark.parametrize(("name", "stage"), [("ghostnet", "blocks.9"), ("efficientnet_b0", "blocks.11")])
def test_bases_are_augmented_extracted_and_enlarged(name: str, stage: str) -> None:
    model = models.create(name, num_classes=7).eval()
    inputs = ((torch.randn(2, 3, 32, 32),), {})
    supernet = netaug_fx.augment(model, 1.5, example_inputs=inputs)
    assert {group.kind for group in supernet.groups} == {"stream", "inner"}
    invariants.assert_target_is_the_model(supernet, model, inputs)
    invariants.assert_extract_restores(supernet, model, inputs)
    first = net_of(model, inputs)
    writer = next(group.name for group in supernet.groups if group.name.startswith(stage) and group.kind == "stream")
    grown = enlarged(first, Move("width", writer), round(1.2 * first.macs), preserve=False, pixels=8, seed=0)
    assert grown is not None
    assert grown.macs == pytest.approx(1.2 * first.macs, rel=0.02)
    assert grown.model(*inputs[0]).shape == (2, 7)
