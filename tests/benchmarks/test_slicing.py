"""The common way to share weights, as it is compared with: first columns of the widest weight, at any widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import netaug_fx
from benchmarks.overhead_nets import SmallViT
from benchmarks.slicing import SlicedNet
from netaug_fx.models import create


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 2)
    )


def test_the_target_reads_the_first_channels_and_trains_them_alone() -> None:
    torch.manual_seed(0)
    model, x = chain(), torch.randn(2, 3, 5, 5)
    supernet = netaug_fx.augment(model, example_inputs=x)
    sliced = SlicedNet(supernet)
    torch.testing.assert_close(sliced.net.train()(x), model.train()(x))
    sliced.net(x).sum().backward()
    gradient = sliced.net[3]._parameters["weight"].grad
    assert gradient.shape == (18, 12, 3, 3)
    assert gradient[:6, :4].abs().sum() > 0
    assert not gradient[6:].any()
    assert not gradient[:, 4:].any()


@pytest.mark.parametrize("make", [chain, lambda: create("mobilenet_v3_035"), lambda: SmallViT(32, 24, 3, 2)])
def test_every_pass_has_the_widths_asked_for(make: object) -> None:
    torch.manual_seed(0)
    model = make()  # type: ignore[operator]
    x = torch.randn(2, 3, *((5, 5) if isinstance(model, nn.Sequential) else (32, 32)))
    supernet = netaug_fx.augment(model, example_inputs=x)
    sliced, widths = SlicedNet(supernet), supernet.sample()
    elastic = [(a, b) for a, b in zip(supernet.modules(), sliced.net.modules(), strict=True) if hasattr(b, "slices")]
    with sliced.at(widths), supernet.augmented(widths):
        assert sliced.net(x).shape == supernet(x).shape
        for ours, theirs in elastic:
            names = [name for name in theirs.slices if theirs._parameters.get(name) is not None]
            assert [getattr(ours, name).shape for name in names] == [getattr(theirs, name).shape for name in names]
    assert sum(p.numel() for p in sliced.net.parameters()) == sum(p.numel() for p in supernet.parameters())
