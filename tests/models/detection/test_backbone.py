"""Backbones: taps at the right strides, the classifier's own values, and its weights carried over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx import models
from netaug_fx.errors import CheckpointError, InputError
from netaug_fx.models.detection import Backbone, create, load_classifier_

TARGETS = ("mobilenet_v2_tiny", "mobilenet_v2_035", "mobilenet_v3_035", "proxylessnas_035", "mcunet")


@pytest.mark.parametrize("name", TARGETS)
def test_feature_maps_are_what_the_classifiers_blocks_give_last_at_each_stride(name: str) -> None:
    net = models.create(name, num_classes=5).eval()
    backbone = Backbone(net).eval()
    image = torch.randn(1, 3, 100, 68)  # sides that no stride divides
    with torch.no_grad():
        maps = backbone(image)
        x, seen = net.stem(image), {}
        for block in net.blocks:
            x = block(x)
            seen[tuple(x.shape[-2:])] = x
    expected = [(13, 9), (7, 5), (4, 3)]
    assert [tuple(each.shape[-2:]) for each in maps] == expected
    assert [each.shape[1] for each in maps] == list(backbone.channels)
    for own, size in zip(maps, expected, strict=True):
        assert torch.equal(own, seen[size])
    assert backbone.example_input_shape == net.example_input_shape


@pytest.mark.parametrize("strides", [(4,), (4, 16), (16, 32), (2, 4, 8, 16, 32)])
def test_other_strides_leave_out_the_blocks_behind_the_last(strides: tuple[int, ...]) -> None:
    net = models.create("mobilenet_v2_tiny")
    backbone = Backbone(net, strides)
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [64 // each.shape[-1] for each in maps] == list(strides)
    assert len(backbone.blocks) == backbone.taps[-1] + 1
    assert len(backbone.blocks) == len(net.blocks) if strides[-1] == 32 else len(backbone.blocks) < len(net.blocks)


@pytest.mark.parametrize("strides", [(), (8, 8), (16, 8), (8, 64), (3,)])
def test_strides_that_no_block_works_at_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected some of 2, 4, 8, 16, 32, growing"):
        Backbone(models.create("mobilenet_v2_tiny"), strides)


def test_other_nets_are_refused_as_backbones() -> None:
    with pytest.raises(InputError, match="made of an InvertedResidualNet, not of ResNetCifar"):
        Backbone(models.create("resnet20"))  # type: ignore[arg-type]


def test_a_classifiers_weights_are_carried_over() -> None:
    classifier = models.create("scenes_net", num_classes=7)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter)
    classifier(torch.randn(4, 1, 32, 32))  # running statistics away from their start
    detector = create("yolo_scenes", num_classes=3)
    left_out = load_classifier_(detector.backbone, classifier.state_dict())
    assert {name.partition(".")[0] for name in left_out} == {"head", "classifier"}
    given = classifier.state_dict()
    for name, tensor in detector.backbone.state_dict().items():
        assert torch.equal(tensor, given[name]), name


def test_a_supernets_weights_are_carried_over_as_those_of_its_target() -> None:
    classifier = models.create("scenes_net", num_classes=7)
    supernet = netaug_fx.augment(classifier, 2, example_inputs=torch.randn(2, 1, 32, 32))
    backbone = Backbone(models.scenes_net(), (8, 16))
    assert "netaug.draws" in load_classifier_(backbone, supernet.state_dict())
    assert torch.equal(backbone.stem.conv.weight, classifier.stem.conv.weight)


def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded() -> None:
    backbone = Backbone(models.create("mobilenet_v2_tiny"))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    own = models.create("mobilenet_v2_tiny").state_dict()
    for given, message in (
        ({}, r"none of the backbone's \d+ tensors is in the state_dict, which has nothing; expected stem"),
        (models.create("resnet20").state_dict(), r"none of the backbone's .* state_dict of a classifier made of"),
        ({f"module.{name}": tensor for name, tensor in own.items()}, r"which has module\.stem\.conv\.weight"),
        (models.create("scenes_net").state_dict(), r"not in the state_dict: blocks\.\d.* another net's, or cut short"),
        (models.create("mobilenet_v2_tiny", in_channels=1).state_dict(), r"in_channels differs"),
        ({**own, "blocks.3.body.depthwise.conv.weight": torch.zeros(2)}, r"first is blocks\.3.*: \[2\], expected"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_classifier_(backbone, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
