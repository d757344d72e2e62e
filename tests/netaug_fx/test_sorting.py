"""Sorting channels: the widest net computes the same, the target holds what matters most, the optimizer follows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError
from tests import invariants
from tests.netaug_fx.small_nets import INPUTS, X, Y, evaluated, train_step

EXPAND, PROJECT = "blocks.1.body.expand.conv", "blocks.1.body.project.conv"
BOTH = ("inner", "stream")

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


def widest_outputs(supernet: Any) -> Tensor:
    with supernet.augmented(supernet.widest):
        return evaluated(supernet, X.double())


def widest_weight(supernet: Any, path: str) -> Tensor:
    with supernet.augmented(supernet.widest):
        return supernet.get_submodule(path).weight.detach().clone()


def widest_step(supernet: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    with supernet.augmented(supernet.widest):
        nn.functional.cross_entropy(supernet(X.double()), Y).backward()
    optimizer.step()


def trained(supernet: Any, kind: str, steps: int = 2) -> tuple[Any, torch.optim.Optimizer]:
    """In double precision and evaluation mode (no dropout): sums in another order then agree to many digits."""
    net = supernet.double().eval()
    optimizer = OPTIMIZERS[kind](net.parameters())
    for _ in range(steps):
        widest_step(net, optimizer)
    return net, optimizer


def test_the_target_holds_the_channels_of_largest_l1_norm(supernet: Any) -> None:
    def norms() -> Tensor:
        return widest_weight(supernet, PROJECT).abs().sum((0, 2, 3))

    with torch.no_grad():
        supernet.get_submodule(PROJECT).weight_netaug1.mul_(3)  # so that extra channels matter more
    before, rows = norms(), widest_weight(supernet, EXPAND)
    assert supernet.widths[EXPAND] == 24
    assert before[:24].sum() < before.topk(24).values.sum()
    netaug_fx.sort_channels_(supernet)
    torch.testing.assert_close(norms(), before.sort(descending=True).values)
    assert torch.equal(supernet.get_submodule(PROJECT).weight, widest_weight(supernet, PROJECT)[:8, :24])
    assert torch.equal(widest_weight(supernet, EXPAND), rows[before.argsort(descending=True, stable=True)])


@pytest.mark.parametrize("kinds", [("inner",), ("stream",), BOTH])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_widest_net_stays_the_same_function(supernet: Any, kind: str, kinds: tuple[str, ...]) -> None:
    net, optimizer = trained(supernet, kind)
    before, target = widest_outputs(net), evaluated(net, X.double())
    netaug_fx.sort_channels_(net, optimizer, kinds=kinds)
    torch.testing.assert_close(widest_outputs(net), before, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(evaluated(net, X.double()), target)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_training_on_equals_sorting_afterwards(supernet: Any, kind: str, steps: int) -> None:
    first, first_optimizer = trained(supernet, kind, steps)
    second = copy.deepcopy(first)
    second_optimizer = OPTIMIZERS[kind](second.parameters())
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    netaug_fx.sort_channels_(second, second_optimizer, kinds=BOTH)
    for _ in range(3):
        widest_step(first, first_optimizer)
        widest_step(second, second_optimizer)
        torch.testing.assert_close(widest_outputs(second), widest_outputs(first), rtol=1e-6, atol=1e-9)


def test_without_its_optimizer_training_goes_another_way(supernet: Any) -> None:
    first, first_optimizer = trained(supernet, "momentum", 3)
    second = copy.deepcopy(first)
    second_optimizer = OPTIMIZERS["momentum"](second.parameters())
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    netaug_fx.sort_channels_(second, kinds=BOTH)
    widest_step(first, first_optimizer)
    widest_step(second, second_optimizer)
    assert not torch.allclose(widest_outputs(second), widest_outputs(first), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_of_target_passes_alone_moves_too(supernet: Any, kind: str) -> None:
    """Before the first augmented pass, extra blocks have no state: it counts as zero and is made where it is needed."""
    optimizer = OPTIMIZERS[kind](supernet.parameters())
    nn.functional.cross_entropy(supernet(X), Y).backward()
    optimizer.step()
    netaug_fx.sort_channels_(supernet, optimizer)
    fresh = OPTIMIZERS[kind](supernet.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    for member, state in optimizer.state.items():
        assert all(value.dim() == 0 or value.shape == member.shape for value in state.values() if value is not None)
    key = {"momentum": "momentum_buffer", "adam": "exp_avg", "adamw": "exp_avg"}.get(kind)
    extra = supernet.get_submodule(EXPAND).weight_netaug0
    assert (key is None) == (not optimizer.state[extra].get(key, torch.zeros(1)).any())
    train_step(supernet, optimizer)
    assert torch.isfinite(evaluated(supernet)).all()


def test_momentum_moves_with_its_channel(supernet: Any) -> None:
    optimizer = OPTIMIZERS["momentum"](supernet.parameters())
    expand = supernet.get_submodule(EXPAND)
    for _ in range(2):
        train_step(supernet, optimizer)
    rows = widest_weight(supernet, EXPAND)[:, :8].flatten(1)
    momenta = torch.cat(
        [
            optimizer.state[expand.weight]["momentum_buffer"],
            optimizer.state[expand.weight_netaug0]["momentum_buffer"][:, :8],
        ]
    ).flatten(1)
    netaug_fx.sort_channels_(supernet, optimizer)
    kept = [int((rows == row).all(1).nonzero()) for row in expand.weight.detach().flatten(1)]
    assert kept != list(range(24))
    assert torch.equal(optimizer.state[expand.weight]["momentum_buffer"].flatten(1), momenta[kept])


def test_frozen_parts_stay_out_of_the_optimizer(supernet: Any) -> None:
    target = [p for name, p in supernet.named_parameters() if "netaug" not in name]
    optimizer = OPTIMIZERS["adam"](target)
    train_step(supernet, optimizer)
    netaug_fx.sort_channels_(supernet, optimizer)
    assert optimizer.state.keys() == set(target)
    assert len(optimizer.state_dict()["state"]) == len(target)
    train_step(supernet, optimizer)


def test_an_optimizer_of_another_net_is_refused(supernet: Any, model: nn.Module) -> None:
    """Of the model that went in, which augment copies: nothing of its state would have moved along."""
    with pytest.raises(InputError, match=r"holds none of the supernet's parameters.*supernet\.parameters\(\)"):
        netaug_fx.sort_channels_(supernet, torch.optim.SGD(model.parameters()))


def test_kinds_not_sorted_stay(supernet: Any) -> None:
    stream, inner = widest_weight(supernet, "stem.conv"), widest_weight(supernet, EXPAND)
    netaug_fx.sort_channels_(supernet)
    assert torch.equal(widest_weight(supernet, "stem.conv"), stream)
    assert not torch.equal(widest_weight(supernet, EXPAND), inner)
    inner = widest_weight(supernet, EXPAND)
    netaug_fx.sort_channels_(supernet, kinds=())
    assert torch.equal(widest_weight(supernet, EXPAND), inner)
    netaug_fx.sort_channels_(supernet, kinds={"stream"})
    assert not torch.equal(widest_weight(supernet, "stem.conv"), stream)


def test_sorting_twice_changes_nothing(supernet: Any) -> None:
    netaug_fx.sort_channels_(supernet, kinds=("inner",))
    before = supernet.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    netaug_fx.sort_channels_(supernet, kinds=("inner",))
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items() if "running" not in key)


def test_statistics_stay_with_their_channels(supernet: Any) -> None:
    norm, expand = supernet.get_submodule("blocks.1.body.expand.norm"), supernet.get_submodule(EXPAND)
    rows, mean, variance = (
        expand.weight.detach().clone().flatten(1),
        norm.running_mean.clone(),
        norm.running_var.clone(),
    )
    count = norm.num_batches_tracked.clone()
    netaug_fx.sort_channels_(supernet)
    stayed = 0
    for place, row in enumerate(expand.weight.detach().flatten(1)):
        came_from = (rows == row).all(1).nonzero().flatten()
        stayed += len(came_from)
        expected = (mean[came_from[0]], variance[came_from[0]]) if len(came_from) else (mean.mean(), variance.mean())
        torch.testing.assert_close((norm.running_mean[place], norm.running_var[place]), expected)
    assert 0 < stayed < 24
    assert torch.equal(norm.num_batches_tracked, count)


@pytest.mark.parametrize("kinds", [("inner",), BOTH])
def test_the_invariants_hold_after_sorting(supernet: Any, kinds: tuple[str, ...]) -> None:
    optimizer = OPTIMIZERS["momentum"](supernet.parameters())
    train_step(supernet, optimizer)
    netaug_fx.sort_channels_(supernet, optimizer, kinds=kinds)
    train_step(supernet, optimizer)
    tiny = netaug_fx.extract(supernet)
    invariants.assert_target_is_the_model(supernet, tiny, INPUTS)
    invariants.assert_extract_restores(supernet, tiny, INPUTS)
    invariants.assert_zeroed_extras_give_the_target(supernet, INPUTS)
    invariants.assert_a_step_trains_everything(supernet, INPUTS)


def test_calibrated_statistics_are_forgotten(supernet: Any) -> None:
    widths = supernet.widest
    netaug_fx.calibrate_(supernet, [X * 3 + 1], widths)
    supernet.eval()
    with supernet.augmented(widths):
        calibrated = evaluated(supernet)
    netaug_fx.sort_channels_(supernet)
    with supernet.augmented(widths):
        by_batch = evaluated(supernet)
    assert not torch.allclose(calibrated, by_batch)
    netaug_fx.calibrate_(supernet, [X * 3 + 1], widths)
    with supernet.augmented(widths):
        torch.testing.assert_close(evaluated(supernet), calibrated, rtol=1e-4, atol=1e-5)


def test_interleaved_and_tied_channels_are_sorted_consistently() -> None:
    """Concatenation puts two groups side by side, and one weight is used twice: every index map has to agree."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv1d(3, 4, 1), nn.Conv1d(3, 6, 1)
            self.mix = nn.Conv1d(10, 10, 1)
            self.last = nn.Conv1d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.left(x), self.right(x)], 1).relu()
            return self.last(self.mix(self.mix(joined).relu()).relu())

    supernet: Any = netaug_fx.augment(Tied().double(), example_inputs=torch.randn(2, 3, 5).double())
    x = torch.randn(2, 3, 5).double()
    with supernet.augmented(supernet.widest):
        before = supernet(x)
        weight = supernet.mix.weight.clone()
    netaug_fx.sort_channels_(supernet, kinds=BOTH)
    with supernet.augmented(supernet.widest):
        torch.testing.assert_close(supernet(x), before)
        assert not torch.equal(supernet.mix.weight, weight)
