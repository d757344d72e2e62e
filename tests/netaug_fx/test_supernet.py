"""The supernet at run time: target by default, wider nets on demand, the same run from the same seed."""

import io
import random
from typing import Any

import pytest
import torch
from torch import nn

import netaug_fx
from netaug_fx import Supernet
from netaug_fx.errors import InputError
from netaug_fx.models import digits_net
from tests import invariants
from tests.netaug_fx.small_nets import INPUTS, Mlp, X, evaluated, train_step

# -- the target and its widths -----------------------------------------------------------------------------------------


def test_it_looks_like_the_model(model: nn.Module, supernet: Any) -> None:
    assert isinstance(supernet, type(model))
    assert isinstance(supernet, Supernet)
    assert type(supernet).__name__ == type(model).__name__
    assert type(supernet).__module__ == type(model).__module__
    assert repr(supernet) == repr(model)
    assert [name for name, _ in supernet.named_modules()] == [name for name, _ in model.named_modules()]


def test_the_pretrained_weights_are_kept(model: nn.Module, supernet: Any) -> None:
    assert torch.equal(evaluated(supernet), evaluated(model))
    invariants.assert_target_is_the_model(supernet, model, INPUTS)
    state = supernet.state_dict()
    assert list(supernet.target_state_dict()) == list(model.state_dict())
    assert all("netaug" in key for key in state.keys() - model.state_dict().keys())


def test_groups_widths_and_pins(supernet: Any) -> None:
    base = {group.name: group.width for group in supernet.groups}
    assert supernet.widths == base
    assert supernet.widest == {name: 3 * width for name, width in base.items()}
    assert [group.choices for group in supernet.groups] == [(w, 2 * w, 3 * w) for w in base.values()]
    with supernet.augmented() as drawn:
        assert supernet.widths == drawn
    assert supernet.widths == base
    pinned = {(pin.tensor, pin.dim): pin.reason for pin in supernet.pins}
    assert "output" in pinned["classifier.weight", 0]
    assert "input" not in pinned["classifier.bias", 0]


def test_given_widths_leave_the_others_at_the_targets(supernet: Any) -> None:
    name = "blocks.1.body.expand.conv"
    with supernet.augmented({name: 31}) as used:
        assert used == {**{group.name: group.width for group in supernet.groups}, name: 31}
        assert supernet.blocks[1].body.expand.conv.weight.shape[0] == 31
        assert supernet.blocks[1].body.project.conv.weight.shape[1] == 31
        assert supernet.blocks[2].body.expand.conv.weight.shape[0] == 24
        assert evaluated(supernet).shape == (4, 10)
    with supernet.augmented({}) as used:
        assert set(used.values()) <= {8, 16, 24, 48}
        assert supernet.blocks[1].body.expand.conv.weight.shape[0] == 24


def test_contexts_nest_and_end_with_exceptions(supernet: Any) -> None:
    base = supernet.widths
    with supernet.augmented(supernet.widest):
        with supernet.augmented({}):
            assert supernet.widths == base
        assert supernet.widths == supernet.widest
        with pytest.raises(RuntimeError, match="stop"), supernet.augmented():
            raise RuntimeError("stop")
        assert supernet.widths == supernet.widest
        with pytest.raises(InputError), supernet.augmented({"stem.conv": 999}):
            pass
        assert supernet.widths == supernet.widest
    assert supernet.widths == base


def test_a_pass_that_cannot_begin_leaves_the_target(supernet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    base, before = supernet.widths, evaluated(supernet)
    with monkeypatch.context() as patch:
        patch.setattr("netaug_fx.supernet.selections", stopped)
        with pytest.raises(KeyboardInterrupt), supernet.augmented(supernet.widest):
            raise AssertionError("the pass began")
    assert supernet.widths == base
    assert torch.equal(evaluated(supernet), before)


def test_sampling_covers_the_choices_and_keeps_other_kinds(supernet: Any) -> None:
    drawn = [supernet.sample() for _ in range(60)]
    for group in supernet.groups:
        assert {widths[group.name] for widths in drawn} == set(group.choices)
    for _ in range(10):
        widths = supernet.sample(kinds={"inner"})
        assert all(widths[g.name] == g.width for g in supernet.groups if g.kind == "stream")
    assert any(supernet.sample(kinds=["stream"]) != supernet.widths for _ in range(10))
    assert supernet.sample(kinds=()) == supernet.widths


# -- training ----------------------------------------------------------------------------------------------------------


def test_augmented_passes_reach_every_extra_parameter_and_no_buffer(supernet: Any) -> None:
    invariants.assert_a_step_trains_everything(supernet, INPUTS)
    supernet.train()
    with supernet.augmented({}):  # nothing of the extra blocks is active
        supernet(X).sum().backward()
    assert all(parameter.grad is not None for parameter in supernet.parameters())


def test_statistics_come_from_target_passes_alone(model: nn.Module, supernet: Any) -> None:
    model.train()
    supernet.train()
    for step in range(3):
        with torch.no_grad():
            model(X + step)
            supernet(X + step)
            with supernet.augmented():
                supernet(X * 9)
    buffers = dict(supernet.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert int(buffers["stem.norm.num_batches_tracked"]) == 6


def test_modes_reach_every_module_and_augmented_evaluation_uses_the_batch(supernet: Any) -> None:
    supernet.eval()
    assert not any(module.training for module in supernet.modules())
    with supernet.augmented(supernet.widest), torch.no_grad():
        both, alone = supernet(X), supernet(X[:2])
        assert torch.equal(supernet(X), both)  # no dropout
    assert not torch.allclose(both[:2], alone)  # statistics of the batch, which differs
    supernet.train()
    assert all(module.training for module in supernet.modules())
    with supernet.augmented(supernet.widest), torch.no_grad():
        assert not torch.equal(supernet(X), supernet(X))  # dropout


def test_same_seed_same_run() -> None:
    model = Mlp()
    first, second, other = (netaug_fx.augment(model, seed=seed) for seed in (3, 3, 4))
    draws = [first.sample() for _ in range(8)]
    assert [second.sample() for _ in range(8)] == draws
    assert [other.sample() for _ in range(8)] != draws
    invariants.assert_equal(list(first.parameters()), list(second.parameters()), "extra weights")
    assert not torch.equal(first.state_dict()["first.weight_netaug0"], other.state_dict()["first.weight_netaug0"])


def test_global_random_numbers_are_left_alone(supernet: Any) -> None:
    model = Mlp()
    before = torch.get_rng_state(), random.getstate()
    netaug_fx.augment(model)
    with supernet.augmented():
        supernet.sample()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_resumed_run_repeats_the_uninterrupted_one(model: nn.Module, supernet: Any) -> None:
    def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    optimizer = optimizer_of(supernet)
    for _ in range(2):
        train_step(supernet, optimizer)
    file = io.BytesIO()
    torch.save({"net": supernet.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, file)
    expected = [train_step(supernet, optimizer) for _ in range(3)]

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed: Any = netaug_fx.augment(model, ratio=3, seed=99)
    resumed_optimizer = optimizer_of(resumed)
    resumed.load_state_dict(saved["net"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    assert [train_step(resumed, resumed_optimizer) for _ in range(3)] == expected
    assert resumed.state_dict().keys() == supernet.state_dict().keys()
    invariants.assert_equal(
        list(resumed.state_dict().values()), list(supernet.state_dict().values()), "the state after resuming"
    )


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_loads_and_leaves_extras_and_draws(supernet: Any, assign: bool) -> None:
    trained = digits_net(dropout=0.1)
    supernet.sample()
    before = supernet.state_dict()
    result = supernet.load_state_dict(trained.state_dict(), assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(evaluated(supernet), evaluated(trained))
    after = supernet.state_dict()
    for key in after.keys() - trained.state_dict().keys():
        assert torch.equal(after[key], before[key]), key
    with supernet.augmented(supernet.widest):
        assert torch.isfinite(evaluated(supernet)).all()


def test_the_target_loads_into_the_plain_model(supernet: Any) -> None:
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1)
    train_step(supernet, optimizer)
    plain = digits_net(dropout=0.1)
    plain.load_state_dict(supernet.target_state_dict())
    assert torch.equal(evaluated(plain), evaluated(supernet))
