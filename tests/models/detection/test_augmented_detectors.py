"""Whole detectors through the compiler: everything but the predictions grows, and the target stays the detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import netaug_fx
from netaug_fx.models.detection import Detector
from netaug_fx.passes.copying import copy_model
from tests import invariants
from tests.models.detection.rendered import Targets, scenes, small

NAMES = ("yolo_scenes", "ssdlite_scenes")


@dataclass
class Case:
    model: Detector
    images: Tensor
    targets: Targets
    supernet: Any

    @property
    def inputs(self) -> Any:
        return (self.images,), {}


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    model, (images, targets) = small(request.param, channels=1), scenes()
    return Case(model, images, targets, netaug_fx.augment(model, 2, example_inputs=images))


def test_all_channels_but_those_of_images_and_predictions_grow(case: Case) -> None:
    growing = {tensor.full_name: tensor.dims for _, tensor in invariants.elastic_tensors(case.supernet)}
    matrices = [name for name, parameter in case.model.named_parameters() if parameter.dim() > 1]
    assert [name for name in matrices if not growing.get(name)] == []
    for part in ("backbone", "neck", "head"):
        assert any(layer.startswith(part) for group in case.supernet.groups for layer in group.layers), part
    shares = netaug_fx.inspect(case.model, 2, example_inputs=case.images)
    assert shares.growing_share == shares.growing_share_of_macs == 1
    net = copy_model(case.supernet).eval()
    expected = [each.shape for each in net(case.images)]
    with net.augmented(net.widest):
        assert [each.shape for each in net(case.images)] == expected


def test_target_is_the_detector_bit_for_bit(case: Case) -> None:
    invariants.assert_target_is_the_model(case.supernet, case.model, case.inputs)


def test_extract_restores_the_detector(case: Case) -> None:
    invariants.assert_extract_restores(case.supernet, case.model, case.inputs)


def test_every_width_gives_the_target_when_extras_are_zeroed(case: Case) -> None:
    """Through enlarging and concatenation, at a size whose coarse maps are cut as well."""
    invariants.assert_zeroed_extras_give_the_target(case.supernet, case.inputs)
    invariants.assert_zeroed_extras_give_the_target(case.supernet, ((torch.randn(2, 1, 72, 40),), {}))


def test_augmented_step_reaches_every_extra_block(case: Case) -> None:
    invariants.assert_a_step_trains_everything(case.supernet, case.inputs)


def test_losses_are_the_detectors_in_target_mode_and_finite_in_wider_nets(case: Case) -> None:
    plain, supernet = copy_model(case.model).train(), copy_model(case.supernet).train()
    theirs, ours = plain(case.images, case.targets), supernet(case.images, case.targets)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with supernet.augmented(supernet.widest):
        wider = supernet(case.images, case.targets)
    assert wider.keys() == theirs.keys()
    assert all(loss.isfinite() for loss in wider.values())
    assert any(not torch.equal(wider[name], theirs[name]) for name in theirs)


def test_trains_by_step_sorts_and_extracts(case: Case) -> None:
    net = copy_model(case.supernet).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)

    def loss(given: Any) -> Tensor:
        return torch.stack(list(given(case.images, case.targets).values())).sum()

    for number in range(4):
        if number == 2:
            netaug_fx.sort_channels_(net, optimizer)
        done = netaug_fx.step(net, loss, project=number == 3)
        assert done.loss.isfinite()
        assert done.augmented[0].isfinite()
        optimizer.step()
        optimizer.zero_grad()
    tiny = netaug_fx.extract(net)
    invariants.assert_target_is_the_model(net, tiny, case.inputs)
    invariants.assert_extract_restores(net, tiny, case.inputs)
    before = dict(case.model.named_parameters())
    unchanged = [name for name, value in tiny.named_parameters() if torch.equal(value, before[name])]
    # A level whose anchors no box suits has no offsets to learn.
    assert [n for n in unchanged if before[n].dim() > 1 and not n.startswith("head.offsets.1")] == []
