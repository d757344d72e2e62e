"""What a reset draws, what an initialisation may do, and what a split weight by weight refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import netaug_fx
from netaug_fx.errors import InputError, PlanError
from netaug_fx.split import is_fit
from netaug_fx.supernet import Supernet, control, split_of
from tests.netaug_fx.split_nets import differing, net, split_net, tensors, train


def test_all_generators_follow_from_the_seed_and_are_left_alone() -> None:
    def fill(dense: Any) -> None:
        for parameter in dense.parameters():
            value = random.random() + np.random.rand()
            parameter.copy_(torch.rand(parameter.shape) + value)

    ours, other = split_net(seed=5), split_net(seed=5)
    for seed, supernet in enumerate((ours, other)):
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
        netaug_fx.reset_(supernet, initialise=fill)
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[union-attr]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert not differing(tensors(ours), tensors(other))


def another(dense: nn.Module) -> nn.Module:
    return net()


def nothing(dense: nn.Module) -> None:
    net().state_dict()


def not_a_number(dense: Any) -> None:
    dense[0].weight.fill_(float("nan"))


def wrapped(dense: Any) -> None:
    dense[0] = nn.Sequential(dense[0])


def added(dense: Any) -> None:
    dense.append(nn.Linear(4, 4))


def unregistered(dense: Any) -> None:
    dense[0].bias = None


@pytest.mark.parametrize(
    ("initialise", "words"),
    [
        (another, r"returned another Sequential, which is not looked at: fill the parameters .* in place"),
        (nothing, r"left every parameter as it was: fill the parameters"),
        (not_a_number, r"left values in '0\.weight' that are not finite"),
        (wrapped, r"added module '0\.0'"),
        (added, r"added module '7'"),
        (unregistered, r"changed '0\.bias' from \[8\] to nothing"),
    ],
)
def test_what_does_not_fill_the_net_is_refused(initialise: Callable[[nn.Module], object], words: str) -> None:
    supernet = split_net()
    before = tensors(supernet)
    with pytest.raises(InputError, match=words):
        netaug_fx.reset_(supernet, initialise=initialise)
    assert not differing(before, tensors(supernet))


def test_an_initialisation_may_write_through_data_and_give_the_net_back() -> None:
    def fill(dense: nn.Module) -> nn.Module:
        for parameter in dense.parameters():
            parameter.data.fill_(3)
        return dense

    supernet = split_net()
    netaug_fx.reset_(supernet, initialise=fill)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert (dense[0].weight[4:] == 3).all()


class Own(nn.Module):
    """A layer that initialises itself in the old way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6, 4), 5.0))

    def reset_parameters(self) -> None:
        self.weight.data.uniform_(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def test_what_a_layer_writes_through_data_counts() -> None:
    supernet = netaug_fx.evolve(nn.Sequential(Own(), nn.Linear(6, 2)), 0.5, example_inputs=torch.zeros(2, 4))
    netaug_fx.reset_(supernet)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert (dense[0].weight[:3] == 5).all()
    assert ((dense[0].weight[3:] >= 1) & (dense[0].weight[3:] <= 2)).all()


@pytest.mark.parametrize("trivialised", [True, False])
def test_an_orthogonal_layer_is_drawn_as_it_was_made_and_stays_orthogonal(trivialised: bool) -> None:
    """Trivialised, what is trained is the way from a base that stays: its reset part goes back to the start of it."""
    torch.manual_seed(0)
    layer = parametrizations.orthogonal(nn.Linear(6, 8), orthogonal_map="householder", use_trivialization=trivialised)
    supernet: Any = netaug_fx.evolve(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)), 0.5, "wels")
    made = layer.parametrizations.weight.original.detach().clone()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in supernet[0].parametrizations.parameters():
            parameter.add_(torch.randn(parameter.shape).tril(-1) * 0.1)
    trained = supernet[0].parametrizations.weight.original.detach().clone()
    netaug_fx.reset_(supernet)
    after = supernet[0].parametrizations.weight.original
    weight = supernet[0].weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(6), rtol=0, atol=1e-5)
    assert not torch.equal(after, trained)
    if trivialised:
        assert bool(((after == trained) | (after == made)).all())


def test_weight_normalisation_is_drawn_as_it_was_made() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 64))
    supernet: Any = netaug_fx.evolve(nn.Sequential(layer, nn.ReLU(), nn.Linear(64, 3)), 0.5, "wels")
    with torch.no_grad():
        for parameter in supernet[0].parametrizations.parameters():
            parameter.fill_(100)
    netaug_fx.reset_(supernet)
    norms, directions = supernet[0].parametrizations.weight.parameters()
    assert 0 < norms[norms != 100].max() < 2
    assert 0 < directions[directions != 100].abs().max() <= 0.5  # of Linear: at most 1 / sqrt(4)


class Masked(nn.Module):
    """A parameter with values that are not finite, and one of complex numbers."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.mask = nn.Parameter(torch.full((4, 4), -torch.inf).triu(1), requires_grad=trained)
        self.phase = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.order = nn.Parameter(torch.arange(4), requires_grad=False)
        self.used = nn.Parameter(torch.tensor([True, False]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.a(x)[..., None, :] + self.mask).softmax(-1).sum(-2) * self.phase.abs().sum(0)
        return y


def test_a_trained_parameter_of_no_known_distribution_is_refused_and_a_frozen_one_stays() -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(InputError, match=r"'mask' held values that are not finite.*requires_grad_\(False\)"):
        netaug_fx.reset_(netaug_fx.evolve(Masked(trained=True), 0.5, "wels"))
    supernet = netaug_fx.evolve(Masked(trained=False), 0.5, "wels", example_inputs=x)
    before = tensors(supernet)
    netaug_fx.reset_(supernet)
    changed = differing(before, tensors(supernet))
    assert changed.isdisjoint({"mask", "order", "used"})
    drawn: Any = supernet.phase
    assert (drawn.real != before["phase"].real).any()
    assert (drawn.imag != before["phase"].imag).any()
    assert torch.isfinite(supernet(x)).all()


def test_what_was_added_after_the_split_stays() -> None:
    supernet: Any = split_net()
    supernet.added = OwnParameters()
    netaug_fx.reset_(supernet)
    assert (supernet.added.scale == 5).all()


class OwnParameters(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 5.0))


# -- weight by weight ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (net, {"pin": ["head.*"]}, r"pin='head\.\*' matches no module"),
        (net, {"pin": "6"}, "pin must be a list of module-path globs"),
        (net, {"seed": 0.5}, "seed must be an integer"),
        (lambda: split_net(), {}, "augmented already"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), {}, "is lazy: give example_inputs"),
        (lambda: torch.jit.script(nn.Linear(3, 2)), {}, "is scripted"),
    ],
)
def test_wels_refuses_what_kels_does(make: Callable[[], nn.Module], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        netaug_fx.evolve(make(), 0.5, "wels", **options)


def test_lazy_modules_are_split_once_they_have_seen_an_input() -> None:
    supernet = netaug_fx.evolve(nn.Sequential(nn.LazyLinear(40)), 0.5, "wels", example_inputs=torch.zeros(2, 9))
    before = tensors(supernet)
    netaug_fx.reset_(supernet)
    share = (before["0.weight"] == tensors(supernet)["0.weight"]).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.15)


def test_masks_follow_from_the_seed() -> None:
    supernet = split_net(0.7, "wels", seed=3)
    train(supernet)
    before = tensors(supernet)
    netaug_fx.reset_(supernet)
    weight = supernet.get_parameter("3.weight")
    fit = is_fit(split_of(supernet), control(supernet).seed, "3.weight", weight)
    assert torch.equal(weight == before["3.weight"], fit)
    other = is_fit(split_of(supernet), 4, "3.weight", weight)
    assert not torch.equal(fit, other)


# -- nothing to cut --------------------------------------------------------------------------------


def test_a_part_that_leaves_every_channel_is_told_from_what_is_pinned() -> None:
    with pytest.raises(PlanError, match=r"ceil\(0\.99 \* 8\) are all 8 channels of its widest group: keep at most 1"):
        split_net(0.99)
    found = split_net(1 - 1 / 8)
    assert Supernet.widths.__get__(found)["0"] == 7  # type: ignore[attr-defined]


# -- random numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_resets_are_others_for_each_seed_and_number_and_none_is_the_first_initialisation(method: str) -> None:
    """torch's generator on CPUs looks at the lowest 32 bits of its seed alone."""
    found = []
    for seed in (0, 1):
        supernet = split_net(method=method, seed=seed)
        found.append(netaug_fx.extract(supernet, dense=True)[3].weight)  # type: ignore[index]
        for _ in range(2):
            netaug_fx.reset_(supernet)
            found.append(netaug_fx.extract(supernet, dense=True)[3].weight)  # type: ignore[index]
    first, *drawn = found[:3] + found[4:]
    for index, one in enumerate(drawn):
        assert not any(bool((one == other)[3:, 4:].all()) for other in (first, *drawn[:index]))


# -- norms of a net without fit channels -----------------------------------------------------------


@pytest.mark.parametrize("reset_norm", [False, True])
def test_running_statistics_of_wels_are_reset_where_norms_are(reset_norm: bool) -> None:
    """They stayed, whatever was asked for."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2))
    supernet: Any = netaug_fx.evolve(model, 0.5, "wels", pin=["4"], example_inputs=torch.randn(4, 3, 8, 8))
    supernet.train()
    supernet(torch.randn(4, 3, 8, 8) + 3)
    before = tensors(supernet)
    netaug_fx.reset_(supernet, reset_norm=reset_norm)
    after = tensors(supernet)
    names = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    changed = {name for name in differing(before, after) if "running" in name or "batches" in name}
    assert changed == (names if reset_norm else set()), "those of the pinned norm stay"
    if reset_norm:
        assert after["1.running_mean"].tolist() == [0.0] * 6
        assert after["1.running_var"].tolist() == [1.0] * 6
