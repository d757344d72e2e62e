"""Splitting a model: the dense pass is the model, the target is the slim net, and a reset leaves the fit weights."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError, PlanError
from netaug_fx.models import resnet18
from netaug_fx.passes.compare_split import check_fit
from netaug_fx.passes.macs import count
from netaug_fx.split import elastic_tensors, registered
from netaug_fx.supernet import Supernet, split_of
from tests.invariants import assert_equal, run
from tests.netaug_fx.split_nets import differing, net, split_net, tensors, train
from tests.wirings import WIRINGS

COPIED = [name for name, wiring in WIRINGS.items() if wiring.copies and wiring.expect != "pinned"]


def extras(supernet: nn.Module) -> set[str]:
    return set(supernet.state_dict()) - set(Supernet.target_state_dict(supernet)) - {"netaug.draws"}


@pytest.mark.parametrize("name", COPIED)
def test_a_slim_net_is_the_dense_one_without_what_is_reset(name: str) -> None:
    wiring = WIRINGS[name]
    model, inputs = wiring.build(), wiring.inputs(2)
    before = tensors(model)
    supernet = netaug_fx.evolve(model, 0.5, example_inputs=inputs)
    assert not differing(before, tensors(model)), "the model was changed"
    for training in (False, True):
        twin, original = copy.deepcopy(supernet).train(training), copy.deepcopy(model).train(training)
        with Supernet.dense(twin):
            assert_equal(run(twin, inputs), run(original, inputs), f"dense outputs, training={training}")
        dense = netaug_fx.extract(twin, dense=True)
        assert type(dense) is type(model)
        assert not differing(tensors(original), tensors(dense)), "the dense net and its norm statistics"
    slim = netaug_fx.extract(supernet)
    assert isinstance(slim, type(model))
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    assert_equal(run(slim.eval(), inputs), run(copy.deepcopy(supernet).eval(), inputs), "slim outputs")
    found = check_fit(slim, supernet, inputs, 1e-4)
    assert found.passed, found
    assert ("not applicable" in found.detail) == bool(split_of(supernet).mixing)


RESET = ["grouped_conv", "dense_block", "literal_view", "multihead_attention_self"]


@pytest.mark.parametrize("name", RESET)
def test_a_reset_draws_the_reset_hypothesis_anew_and_leaves_the_fit_one(name: str) -> None:
    wiring = WIRINGS[name]
    supernet = netaug_fx.evolve(wiring.build(), 0.5, example_inputs=wiring.inputs(2))
    before = tensors(supernet)
    netaug_fx.reset_(supernet)
    changed = differing(before, tensors(supernet)) - {"netaug.draws"}
    assert changed <= extras(supernet)
    for module, tensor in elastic_tensors(supernet):
        if tensor.kind == "parameter" and len(tensor.layouts) >= 2:
            blocks = [registered(module, extra) for extra in tensor.extras]
            names = [key for key, value in supernet.named_parameters() if any(value is block for block in blocks)]
            assert all(key in changed for key in names if before[key].numel())


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_training_the_dense_pass_is_training_the_model(method: str) -> None:
    supernet, plain = split_net(method=method), net()
    train(supernet)
    train(plain)
    assert not differing(tensors(plain), tensors(netaug_fx.extract(supernet, dense=True)))


def test_the_slim_net_has_the_norm_statistics_of_the_dense_one() -> None:
    supernet = split_net()
    train(supernet)
    slim: Any = netaug_fx.extract(supernet)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert dense[1].running_mean.abs().sum() > 0
    assert torch.equal(slim[1].running_mean, dense[1].running_mean[:4])
    assert torch.equal(slim[1].running_var, dense[1].running_var[:4])
    assert slim[1].num_batches_tracked == dense[1].num_batches_tracked == 3


def test_a_reset_is_the_layers_own_initialisation_and_norms_go_on() -> None:
    supernet = split_net()
    train(supernet, 30)
    trained = tensors(netaug_fx.extract(supernet, dense=True))
    netaug_fx.reset_(supernet)
    after = tensors(netaug_fx.extract(supernet, dense=True))
    assert differing(trained, after) == {"0.weight", "0.bias", "3.weight", "3.bias", "6.weight"}
    assert torch.equal(trained["0.bias"][:4], after["0.bias"][:4])
    bound = (3 * 9) ** -0.5  # of torch's convolutions: kaiming_uniform_ with a = sqrt(5)
    assert after["0.weight"][4:].abs().max() <= bound
    assert after["0.weight"][4:].abs().max() > 0.8 * bound


def test_norms_are_reset_where_asked() -> None:
    supernet = split_net()
    train(supernet)
    netaug_fx.reset_(supernet, reset_norm=True)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert torch.equal(dense[1].running_mean[4:], torch.zeros(4))
    assert torch.equal(dense[1].weight[4:], torch.ones(4))
    assert dense[1].running_mean[:4].abs().min() > 0


def test_the_users_own_initialisation_is_used_for_the_reset_hypothesis_alone() -> None:
    supernet = split_net()

    def fill(dense: nn.Module) -> None:
        for parameter in dense.parameters():
            parameter.fill_(7)

    before = tensors(netaug_fx.extract(supernet))
    netaug_fx.reset_(supernet, initialise=fill)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert (dense[0].weight[4:] == 7).all()
    assert (dense[3].weight[:, 4:] == 7).all()
    assert not (dense[1].weight == 7).any()
    assert not differing(before, tensors(netaug_fx.extract(supernet)))


class OwnParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.scale = nn.Parameter(torch.full((1, 8), 0.5))
        self.matrix = nn.Parameter(torch.randn(8, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) * self.scale) @ self.matrix


def test_parameters_without_an_initialisation_are_drawn_from_how_they_were() -> None:
    torch.manual_seed(0)
    supernet = netaug_fx.evolve(OwnParameters(), 0.5, example_inputs=torch.zeros(2, 4))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.fill_(9)
    netaug_fx.reset_(supernet)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert (dense.scale[:, :4] == 9).all()
    torch.testing.assert_close(dense.scale[:, 4:], torch.full((1, 4), 0.5))
    assert 0 < dense.matrix[4:].abs().max() < 0.4


def test_resets_follow_from_the_seed_and_their_number_and_travel_in_the_state_dict() -> None:
    ours, other = split_net(seed=5), split_net(seed=5)
    before = torch.get_rng_state()
    netaug_fx.reset_(ours)
    assert torch.equal(before, torch.get_rng_state())
    resumed = split_net(seed=5)
    resumed.load_state_dict(ours.state_dict())
    netaug_fx.reset_(ours)
    netaug_fx.reset_(resumed)
    assert not differing(tensors(ours), tensors(resumed))
    netaug_fx.reset_(other)
    assert differing(tensors(ours), tensors(other)) > {"netaug.draws"}


def test_weights_split_one_by_one() -> None:
    supernet = split_net(0.7, "wels", pin=["6"])
    before = tensors(supernet)
    netaug_fx.reset_(supernet)
    after = tensors(supernet)
    share = (before["3.weight"] == after["3.weight"]).float().mean().item()
    assert share == pytest.approx(0.7, abs=0.05)
    assert torch.equal(before["6.weight"], after["6.weight"])
    assert torch.equal(before["1.weight"], after["1.weight"])
    first_reset = before["3.weight"] == after["3.weight"]
    netaug_fx.reset_(supernet)
    assert torch.equal(first_reset, before["3.weight"] == supernet.state_dict()["3.weight"])


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_copies_and_pickles_go_on_alike(method: str) -> None:
    supernet = split_net(method=method)
    twins = [copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))]
    for one in (supernet, *twins):
        train(one)
        netaug_fx.reset_(one)
    for twin in twins:
        assert not differing(tensors(supernet), tensors(twin))


def test_a_supernet_whose_slim_net_has_a_class_of_its_own_can_be_copied_and_pickled() -> None:
    wiring = WIRINGS["literal_view"]
    supernet = netaug_fx.evolve(wiring.build(), 0.5, example_inputs=wiring.inputs(2)).eval()
    slim = netaug_fx.extract(supernet)
    for twin in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))):
        assert type(netaug_fx.extract(twin)) is type(slim)
        assert_equal(run(twin, wiring.inputs(2)), run(slim, wiring.inputs(2)), "slim outputs")
        assert not differing(tensors(supernet), tensors(twin))


def test_verify_holds_the_slim_net_against_the_dense_one() -> None:
    supernet = split_net()
    train(supernet)
    slim: Any = netaug_fx.extract(supernet)
    report = netaug_fx.verify(slim, supernet, torch.zeros(1, 3, 8, 8))
    assert report.passed, str(report)
    assert "without the reset weights" in report["fit hypothesis"].detail
    with torch.no_grad():
        slim[3].weight[0, 0] += 1
    assert not netaug_fx.verify(slim, supernet, torch.zeros(1, 3, 8, 8), onnx=False)["fit hypothesis"].passed


RESNET18 = [(1.0, 11.23e6, 1.814e9), (0.8, 7.22e6, 1.195e9), (0.5, 2.83e6, 0.483e9)]


@pytest.mark.parametrize(("keep", "params", "macs"), RESNET18)
def test_resnet18_has_the_costs_of_the_reference(keep: float, params: float, macs: float) -> None:
    """Taha et al., CVPR 2021: ResNet18 with 102 classes at 224 pixels, and its slim nets."""
    supernet = netaug_fx.evolve(resnet18(num_classes=102), keep, example_inputs=torch.zeros(2, 3, 64, 64))
    costs = count(netaug_fx.extract(supernet), torch.zeros(1, 3, 224, 224))
    assert costs.params == pytest.approx(params, rel=2e-3)
    assert costs.macs == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), True, "half"])
def test_keep_must_be_a_part(keep: Any) -> None:
    with pytest.raises(InputError, match="keep must be above 0 and at most 1"):
        netaug_fx.evolve(net(), keep)


def test_other_methods_are_refused() -> None:
    with pytest.raises(InputError, match="'kels' or 'wels'"):
        netaug_fx.evolve(net(), 0.5, "layers")


def test_a_model_that_cannot_be_cut_says_why_and_what_else_works() -> None:
    with pytest.raises(PlanError, match=r"no width of Linear can be cut to keep=0\.5.*method='wels'"):
        netaug_fx.evolve(nn.Linear(3, 2), 0.5, example_inputs=torch.zeros(2, 3))


def test_what_is_no_split_supernet_is_told_apart() -> None:
    augmented = netaug_fx.augment(net(), example_inputs=torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"made by netaug_fx\.augment"), Supernet.dense(augmented):
        augmented(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"made by netaug_fx\.augment"):
        netaug_fx.reset_(augmented)
    with pytest.raises(InputError, match="is not a supernet"):
        netaug_fx.reset_(net())
    supernet = split_net()
    with supernet.dense():
        with pytest.raises(InputError, match="leave its context first"), supernet.dense():
            supernet(torch.zeros(2, 3, 8, 8))
        with pytest.raises(InputError, match="leave the context first"):
            netaug_fx.reset_(supernet)


def test_an_initialisation_of_another_net_is_refused() -> None:
    def other(dense: Any) -> None:
        dense[6] = nn.Linear(6, 5)

    supernet = split_net()
    before = tensors(supernet)
    with pytest.raises(InputError, match=r"changed '6\.weight' from \[4, 6\] to \[5, 6\]"):
        netaug_fx.reset_(supernet, initialise=other)
    assert differing(before, tensors(supernet)) <= {"netaug.draws"}


def test_the_documents_loop_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evolve.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "evolve.md", "exec"), names)
    assert type(names["dense"]) is type(names["slim"])
    assert names["slim"].conv1.out_channels == 8


class Scaled(nn.Module):
    """A vector of its own beside layers: neither it nor what is below it is a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) * self.gamma)
        return y


@pytest.mark.parametrize("method", ["kels", "wels"])
def test_layers_below_a_module_with_a_vector_of_its_own_are_reset(method: str) -> None:
    supernet = netaug_fx.evolve(Scaled(), 0.5, method, example_inputs=torch.zeros(2, 4))
    before = tensors(netaug_fx.extract(supernet, dense=True))
    netaug_fx.reset_(supernet)
    assert differing(before, tensors(netaug_fx.extract(supernet, dense=True))) >= {"a.weight", "a.bias", "b.weight"}


def test_weights_that_a_hook_computes_are_reset() -> None:
    layer = nn.utils.weight_norm(nn.Linear(4, 8))  # torch warns that it is old
    supernet = netaug_fx.evolve(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)), 0.5, "wels")
    before = tensors(supernet)
    netaug_fx.reset_(supernet)
    assert differing(before, tensors(supernet)) >= {"0.weight_v", "0.weight_g"}


def test_frozen_parameters_stay() -> None:
    model = net()
    model[3].weight.requires_grad_(False)
    supernet = netaug_fx.evolve(model, 0.5, example_inputs=torch.zeros(2, 3, 8, 8))
    before = tensors(netaug_fx.extract(supernet, dense=True))
    netaug_fx.reset_(supernet)
    changed = differing(before, tensors(netaug_fx.extract(supernet, dense=True)))
    assert "3.weight" not in changed
    assert "0.weight" in changed


def test_a_wider_pass_within_a_dense_one_is_refused() -> None:
    supernet = split_net()
    with supernet.dense():
        supernet(torch.zeros(2, 3, 8, 8))
        with pytest.raises(InputError, match=r"within dense\(\), whose norm statistics"), supernet.augmented():
            supernet(torch.zeros(2, 3, 8, 8))
    assert netaug_fx.extract(supernet, dense=True)[1].num_batches_tracked == 1  # type: ignore[index]


@pytest.mark.parametrize("pinned", ["embed", "head"])
def test_a_tied_weight_is_pinned_by_either_of_its_paths(pinned: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.middle = nn.Embedding(20, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.middle(self.embed(tokens)).relu())  # type: ignore[no-any-return]

    net = netaug_fx.evolve(Tied(), 0.5, "wels", example_inputs=torch.randint(20, (2, 7)), pin=[pinned])
    before = {name: value.clone() for name, value in net.named_parameters()}
    netaug_fx.reset_(net)
    assert torch.equal(net.head.weight, before["embed.weight"])
    assert not torch.equal(net.middle.weight, before["middle.weight"])


def test_the_least_part_is_one_channel_of_each_width() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    slim = netaug_fx.extract(netaug_fx.evolve(net, 1e-12, example_inputs=torch.randn(2, 4)))
    assert slim[0].weight.shape == (1, 4)
