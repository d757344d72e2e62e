"""GhostNet and EfficientNet-B0 through the compiler: what is to be enlarged must be analysed and widened."""

from __future__ import annotations

import pytest
import torch

import netaug_fx
from netaug_fx import models
from netaug_fx.candidates import ABOVE, BELOW, Move, Net, at_images, enlarged, net_of
from netaug_fx.passes.deepen import insert_block
from netaug_fx.passes.fake_macs import fake_macs
from netaug_fx.passes.stages import repeatable_blocks
from tests import invariants


@pytest.mark.parametrize(
    ("name", "stage", "dim"), [("ghostnet", "blocks.9", "width"), ("efficientnet_b0", "blocks.11", "depth")]
)
def test_bases_are_augmented_extracted_and_enlarged(name: str, stage: str, dim: str) -> None:
    model = models.create(name, num_classes=7).eval()
    inputs = ((torch.randn(2, 3, 32, 32),), {})
    supernet = netaug_fx.augment(model, 1.5, example_inputs=inputs)
    assert {group.kind for group in supernet.groups} == {"stream", "inner"}
    invariants.assert_target_is_the_model(supernet, model, inputs)
    invariants.assert_extract_restores(supernet, model, inputs)
    first = net_of(model, inputs)
    writer = next(group.name for group in supernet.groups if group.name.startswith(stage) and group.kind == "stream")
    grown = enlarged(first, Move(dim, writer), round(1.4 * first.macs), preserve=False, pixels=8, seed=0)
    assert isinstance(grown, Net), str(grown)
    assert 1 - BELOW <= grown.macs / (1.4 * first.macs) <= 1 + ABOVE
    assert grown.model(*inputs[0]).shape == (2, 7)


def test_what_a_block_and_larger_images_cost_is_what_the_reference_says() -> None:
    """GhostNet 1.0x at 224 pixels: one more block about +2.4 to +11.0 %, 240 pixels about +19.3 %."""
    model = models.create("ghostnet").eval()
    small, image = (((torch.randn(2, 3, 32, 32),), {}), ((torch.zeros(1, 3, 224, 224),), {}))
    first = Net(model, 224, fake_macs(model, image), image)
    assert first.macs == pytest.approx(141.15e6, rel=1e-3)
    assert at_images(first, 240).macs / first.macs - 1 == pytest.approx(0.193, abs=0.0015)
    blocks = [path for path in repeatable_blocks(model, small) if path.count(".") == 1]  # gates are deeper
    more = [fake_macs(insert_block(model, block, small), image) / first.macs - 1 for block in blocks]
    assert [min(more), max(more)] == pytest.approx([0.024, 0.110], abs=0.003)
