"""The nets that the other tests stand on: each builds, runs, copies, and uses all its parameters."""

import ast
import copy
import pickle
import random

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from tests import random_nets
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


FEW_DOZEN = 40


def test_random_nets_run_in_both_modes_and_take_gradients() -> None:
    for number in range(FEW_DOZEN):
        spec = random_nets.random_spec(random.Random(number))
        model = random_nets.build(spec)
        for batch in (2, 3):
            for training in (True, False):
                args, kwargs = random_nets.inputs(spec, batch)
                output = model.train(training)(*args, **kwargs)
                assert output.shape == (batch, CLASSES), spec
                assert output.isfinite().all(), spec
        model.train()(*args, **kwargs).square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients), spec
        copied, original = copy.deepcopy(model).eval(), model.eval()
        assert torch.equal(copied(*args, **kwargs), original(*args, **kwargs)), spec


@pytest.mark.parametrize("kind", sorted(random_nets.KINDS))
def test_every_kind_of_block_stands_anywhere(kind: str) -> None:
    for number in range(12):
        rng = random.Random(number)
        spec = random_nets.random_spec(rng)
        while not any(block[0] == kind for block in spec["blocks"]):
            spec["blocks"] = [random_nets.random_block(rng), *spec["blocks"][:2]]
        args, kwargs = random_nets.inputs(spec, 2)
        assert random_nets.build(spec)(*args, **kwargs).isfinite().all(), spec


@given(random_nets.random_nets())
@settings(max_examples=FEW_DOZEN)
def test_a_spec_is_a_literal_and_gives_one_net(spec: random_nets.Spec) -> None:
    assert ast.literal_eval(repr(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    state = random_nets.build(spec).state_dict()
    again = random_nets.build(ast.literal_eval(repr(spec))).state_dict()
    assert_equal(list(state.values()), list(again.values()))
    other = random_nets.build(spec, seed=1).state_dict()
    assert not torch.equal(state["classifier.weight"], other["classifier.weight"])


def test_random_nets_know_whether_they_mix() -> None:
    plain = {"size": (4, 4), "stem": 4, "head": "mean", "blocks": [("norm", {"norm": "batch", "act": "relu"})]}
    mixing = {**plain, "blocks": [("skip", {"body": ("norm", {"norm": "layer", "act": "relu"})})]}
    assert not random_nets.mixes(plain)
    assert random_nets.mixes(mixing)


def test_a_counter_example_shrinks_to_the_block_that_matters() -> None:
    def has_shuffle(spec: random_nets.Spec) -> bool:
        return any(kind == "shuffle" and options["spelling"] == "literal" for kind, options in spec["blocks"])

    quiet = settings(max_examples=2000, database=None, derandomize=True)
    spec = hypothesis.find(random_nets.random_nets(), has_shuffle, settings=quiet)
    shuffle = ("shuffle", {"groups": 2, "width": 2, "spelling": "literal", "direct": False})
    assert spec == {"blocks": [shuffle], "size": (4, 4), "stem": 4, "head": "mean"}
