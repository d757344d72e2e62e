"""The nets that the other tests stand on: each builds, runs, copies, and uses all its parameters."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.wirings import CLASSES, WIRINGS, Wiring, tensors_in
from tests.wirings.registry import register

EVERY = [pytest.param(wiring, id=name) for name, wiring in WIRINGS.items()]


def run(model: nn.Module, wiring: Wiring, batch: int) -> list[Tensor]:
    args, kwargs = wiring.inputs(batch)
    torch.manual_seed(0)
    return tensors_in(model(*args, **kwargs))


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wiring", EVERY)
@pytest.mark.parametrize("batch", [2, 3])
def test_runs_in_both_modes(wiring: Wiring, batch: int) -> None:
    model = wiring.build()
    assert model.training
    for training, count in ((True, wiring.train_outputs), (False, wiring.outputs)):
        outputs = run(model.train(training), wiring, batch)
        assert len(outputs) == count
        for output in outputs:
            assert output.shape[0] == batch
            assert output.isfinite().all()
        assert any(CLASSES in output.shape for output in outputs)
        assert max(output.std() for output in outputs) > 1e-3, "outputs are constant: mistakes would not show"


@pytest.mark.parametrize("wiring", EVERY)
def test_gradients_reach_every_parameter(wiring: Wiring) -> None:
    model = wiring.build()
    outputs = run(model, wiring, 3)
    draw = torch.Generator().manual_seed(1)
    sum((torch.randn(output.shape, generator=draw) * output).sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs().max() > 1e-5) == (name not in wiring.idle), name


@pytest.mark.parametrize("wiring", EVERY)
def test_every_parameter_matters_in_evaluation(wiring: Wiring) -> None:
    model = wiring.build().eval()
    before = run(model, wiring, 2)
    trained_only = [name for name, _ in model.named_parameters() if name.startswith("aux")]
    for name, parameter in model.named_parameters():
        if name in trained_only:
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5).add_(torch.linspace(-0.3, 0.5, kept.numel()).view_as(kept))
        after = run(model, wiring, 2)
        assert any((a - b).abs().max() > 1e-6 for a, b in zip(before, after, strict=True)), name
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize("wiring", EVERY)
def test_builds_the_same_net_every_time_and_leaves_the_generator_alone(wiring: Wiring) -> None:
    torch.manual_seed(5)
    first = wiring.build()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert_equal(list(first.state_dict().values()), list(wiring.build().state_dict().values()))
    assert_equal(tensors_in(wiring.inputs(2)), tensors_in(wiring.inputs(2)))


@pytest.mark.parametrize("wiring", EVERY)
def test_copies_and_state_reproduce_the_outputs(wiring: Wiring) -> None:
    model = wiring.build().eval()
    expected = run(model, wiring, 2)
    if wiring.copies:
        assert_equal(run(copy.deepcopy(model), wiring, 2), expected)
    else:
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(model)
    fresh = wiring.build().eval()
    fresh.load_state_dict(model.state_dict())
    assert_equal(run(fresh, wiring, 2), expected)


@pytest.mark.parametrize("wiring", EVERY)
def test_facts_name_parameters_of_the_net(wiring: Wiring) -> None:
    shapes = {name: parameter.shape for name, parameter in wiring.build().named_parameters(remove_duplicate=False)}
    assert set(wiring.grows) | set(wiring.pinned) <= set(shapes)
    assert not set(wiring.grows) & set(wiring.pinned)
    assert all(max(shapes[name], default=1) > 1 for name in wiring.grows)
    assert sum(shape.numel() for shape in shapes.values()) < 8000
    assert bool(wiring.grows) == (wiring.expect != "pinned")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        register("plain_chain", nn.Identity)
