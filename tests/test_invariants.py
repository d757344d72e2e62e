"""The design's invariants on every hand-made wiring: each grows and is exact, or is pinned with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx.errors import PlanError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.macs import count
from netaug_fx.supernet import control
from tests import invariants
from tests.wirings import WIRINGS, Wiring


@dataclass
class Case:
    wiring: Wiring
    model: nn.Module
    inputs: Any
    supernet: netaug_fx.Supernet


PINNED = [name for name, wiring in WIRINGS.items() if wiring.expect == "pinned"]


@pytest.fixture(scope="module", params=[name for name in WIRINGS if name not in PINNED])
def grown(request: pytest.FixtureRequest) -> Case:
    wiring = WIRINGS[request.param]
    model, inputs = wiring.build(), wiring.inputs(2)
    return Case(wiring, model, inputs, netaug_fx.augment(model, 3, example_inputs=inputs))


@pytest.mark.parametrize("name", PINNED)
def test_pinned_with_its_reason(name: str) -> None:
    wiring = WIRINGS[name]
    with pytest.raises(PlanError, match="nothing in this model can be widened") as refusal:
        netaug_fx.augment(wiring.build(), 3, example_inputs=wiring.inputs(2))
    assert wiring.reason_contains in str(refusal.value).lower()


def test_grows_as_expected(grown: Case) -> None:
    wiring, supernet = grown.wiring, grown.supernet
    growing = {tensor.full_name for _, tensor in invariants.elastic_tensors(supernet) if tensor.dims}
    pins = [pin for pin in control(supernet).pins if pin.tensor in (*wiring.grows, *wiring.pinned)]
    assert set(wiring.grows) <= growing, pins
    assert growing.isdisjoint(wiring.pinned)
    assert all(pin.reason for pin in control(supernet).pins)
    if wiring.pinned and wiring.reason_contains:
        assert any(wiring.reason_contains in f"{pin.reason} {pin.op}".lower() for pin in pins)


def test_target_is_the_model_bit_for_bit(grown: Case) -> None:
    invariants.assert_target_is_the_model(grown.supernet, grown.model, grown.inputs)
    invariants.assert_target_is_the_model(grown.supernet, grown.model, grown.wiring.inputs(3))


def test_extract_restores_the_model(grown: Case) -> None:
    invariants.assert_extract_restores(grown.supernet, grown.model, grown.inputs)
    tiny = netaug_fx.extract(grown.supernet)
    assert count(tiny, grown.inputs).macs == count(grown.model, grown.inputs).macs


def test_every_width_gives_the_target_when_extras_are_zeroed(grown: Case) -> None:
    if grown.wiring.mixes:
        # statistics across channels see the extra channels: the outputs keep their shapes and stay finite
        invariants.assert_every_width_runs(grown.supernet, grown.wiring.inputs(3))
    else:
        invariants.assert_zeroed_extras_give_the_target(grown.supernet, grown.wiring.inputs(3))


def test_augmented_step_reaches_every_extra_block(grown: Case) -> None:
    invariants.assert_a_step_trains_everything(grown.supernet, grown.inputs)


def test_sorting_keeps_the_widest_net_and_the_extraction(grown: Case) -> None:
    net = copy_model(grown.supernet).double().eval()
    inputs = invariants.as_double(grown.inputs)
    before = invariants.run_widest(net, inputs)
    netaug_fx.sort_channels_(net, kinds=("stream", "inner"))
    after = invariants.run_widest(net, inputs)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
    invariants.assert_extract_restores(net, netaug_fx.extract(net), inputs)
    invariants.assert_target_is_the_model(net, netaug_fx.extract(net), inputs)
