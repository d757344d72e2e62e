"""Growing for good: copied channels leave the function as it is, on every wiring where they can."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netaug_fx.api import compile_model
from netaug_fx.errors import CheckError, InputError
from netaug_fx.passes.grow import grow
from netaug_fx.passes.running import output_tensors
from tests.wirings import WIRINGS

COPIED = [name for name, wiring in WIRINGS.items() if wiring.copies and wiring.expect != "pinned" and not wiring.mixes]
TIED = ["tied_embedding", "tied_transposed"]


def outputs(net: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = copy.deepcopy(inputs)
    with torch.no_grad():
        return output_tensors(net.eval()(*args, **kwargs))


def grown(name: str, how: str, seed: int = 3) -> tuple[nn.Module, nn.Module, Any]:
    wiring = WIRINGS[name]
    model, inputs = wiring.build(), wiring.inputs(2)
    found = compile_model(model, 2.0, example_inputs=inputs)
    sizes = {var: var.size + 1 + var.size // 2 for var in found.plan.numbers}
    return grow(model, found.analysis, sizes, found.inputs, how=how, seed=seed), model, inputs


@pytest.mark.parametrize("name", [name for name in COPIED if name not in TIED])
def test_a_net_with_copied_channels_computes_the_same(name: str) -> None:
    wide, model, inputs = grown(name, "replicate")
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
    for a, b in zip(outputs(wide, inputs), outputs(model, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TIED)
def test_a_weight_that_writes_and_reads_its_channels_cannot_be_copied(name: str) -> None:
    with pytest.raises(CheckError, match=r"one weight both writes and reads them; use how='fresh'"):
        grown(name, "replicate")


@pytest.mark.parametrize("name", ["literal_view", "dense_block", "tied_embedding"])
def test_fresh_channels_keep_the_old_weights_and_follow_the_seed(name: str) -> None:
    (one, model, inputs), (same, _, _), (other, _, _) = (grown(name, "fresh", seed) for seed in (1, 1, 2))
    pairs = list(zip(one.parameters(), model.parameters(), strict=True))
    assert any(new.shape != old.shape for new, old in pairs)
    assert all(bool(torch.isin(old, new).all()) for new, old in pairs)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.isfinite(t).all() for t in outputs(one, inputs) if t.is_floating_point())


def test_copies_do_not_stay_copies() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = compile_model(model, 2.0, example_inputs=torch.zeros(2, 3))
    wide: Any = grow(model, found.analysis, dict.fromkeys(found.plan.numbers, 8), found.inputs, how="replicate")
    assert torch.equal(wide[0].weight.sort(0).values[::2], wide[0].weight.sort(0).values[1::2])
    wide(torch.randn(16, 3)).square().mean().backward()
    rows = [tuple(row.tolist()) for row in wide[0].weight - wide[0].weight.grad]
    assert len(set(rows)) == 8


def test_bad_requests_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    found = compile_model(model, 2.0, example_inputs=torch.zeros(2, 3))
    with pytest.raises(InputError, match="4 channels were to become 2"):
        grow(model, found.analysis, dict.fromkeys(found.plan.numbers, 2), found.inputs)
    with pytest.raises(InputError, match="'fresh' or 'replicate'"):
        grow(model, found.analysis, {}, found.inputs, how="copy")


@pytest.mark.parametrize("how", ["fresh", "replicate"])
def test_variances_of_new_channels_are_not_negative(how: str) -> None:
    """They were drawn like weights: uneven ones gave variances below zero, and outputs that are no numbers."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    norm.running_var = torch.logspace(-2, 0.9, 16)
    norm.running_mean = torch.linspace(-3, 3, 16)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 2, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    found = compile_model(model, 2.0, example_inputs=x)
    wide: Any = grow(model, found.analysis, {var: 3 * var.size for var in found.plan.numbers}, found.inputs, how=how)
    assert wide[1].running_var.shape == (48,)
    assert bool(torch.isin(wide[1].running_var, norm.running_var).all())
    assert wide[1].running_var.min() > 0
    assert torch.isfinite(wide(x)).all()


def test_new_channels_of_complex_weights_are_drawn() -> None:
    class Phased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
            self.phase = nn.Parameter(torch.randn(8, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last((self.first(x) * self.phase).abs())
            return y

    torch.manual_seed(0)
    model = Phased()
    found = compile_model(model, 2.0, example_inputs=torch.randn(2, 3))
    wide: Any = grow(model, found.analysis, {var: 2 * var.size for var in found.plan.numbers}, found.inputs)
    assert wide.phase.shape == (16,)
    assert bool((wide.phase[8:].real != 0).all() and (wide.phase[8:].imag != 0).all())


def test_a_net_that_is_analysed_on_zeros_is_compared_on_noise() -> None:
    """On zeros a norm across copied channels gives zeros, whatever it is over."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # type: ignore[operator]
    found = compile_model(model, 2.0, example_inputs=torch.zeros(2, 3))
    with pytest.raises(CheckError, match=r"copied channels change the outputs"):
        grow(model, found.analysis, dict.fromkeys(found.plan.numbers, 7), found.inputs, how="replicate")
