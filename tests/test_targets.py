"""The paper's five targets, and ResNet-18 as the large control: invariants, training, extraction, proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx import models
from netaug_fx.passes.copying import copy_model
from tests import invariants

TARGETS = ("mobilenet_v2_tiny", "mobilenet_v2_035", "mobilenet_v3_035", "proxylessnas_035", "mcunet", "resnet18")
EXPORTED = {"mobilenet_v2_tiny", "mobilenet_v3_035"}  # with ONNX, which takes longer than all else
PIXELS = 32  # no invariant depends on the resolution


@dataclass
class Case:
    name: str
    model: nn.Module
    inputs: Any
    supernet: netaug_fx.Supernet


@pytest.fixture(scope="module", params=TARGETS)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    model = models.create(request.param, num_classes=10)
    inputs = ((torch.randn(4, 3, PIXELS, PIXELS),), {})
    # a trained net's statistics, so that a wrong index map of a norm would show
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return Case(request.param, model, inputs, netaug_fx.augment(model, 2, example_inputs=inputs))


def test_all_channels_but_input_and_classes_grow(case: Case) -> None:
    growing = {tensor.full_name: tensor.dims for _, tensor in invariants.elastic_tensors(case.supernet)}
    matrices = [name for name, parameter in case.model.named_parameters() if parameter.dim() > 1]
    assert [name for name in matrices if not growing.get(name)] == []
    assert {group.kind for group in case.supernet.groups} == {"stream", "inner"}


def test_target_is_the_model_bit_for_bit(case: Case) -> None:
    invariants.assert_target_is_the_model(case.supernet, case.model, case.inputs)


def test_extract_restores_the_model(case: Case) -> None:
    invariants.assert_extract_restores(case.supernet, case.model, case.inputs)


def test_every_width_gives_the_target_when_extras_are_zeroed(case: Case) -> None:
    invariants.assert_zeroed_extras_give_the_target(case.supernet, case.inputs)


def test_augmented_step_reaches_every_extra_block(case: Case) -> None:
    invariants.assert_a_step_trains_everything(case.supernet, case.inputs)


def test_trains_sorts_extracts_and_is_proven(case: Case) -> None:
    net = copy_model(case.supernet).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    labels = torch.arange(4)
    for step in range(20):
        if step == 10:
            netaug_fx.sort_channels_(net, optimizer)
        nn.functional.cross_entropy(net(*case.inputs[0]), labels).backward()
        with net.augmented():
            nn.functional.cross_entropy(net(*case.inputs[0]), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    tiny = netaug_fx.extract(net)
    invariants.assert_target_is_the_model(net, tiny, case.inputs)
    invariants.assert_extract_restores(net, tiny, case.inputs)
    before = dict(case.model.named_parameters())
    assert all(not torch.equal(value, before[name]) for name, value in tiny.named_parameters())
    report = netaug_fx.verify(tiny, case.model, case.inputs, onnx=case.name in EXPORTED)
    report.raise_if_failed()
    assert report.passed
