"""Extract: exactly the net that went in, trained, and nothing of the supernet on it."""

import copy
import gc
import pickle
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.elastic import STATE
from netaug_fx.errors import InputError
from netaug_fx.models import digits_net
from netaug_fx.supernet import CONTROL
from tests import invariants
from tests.netaug_fx.small_nets import INPUTS, Mlp, X, evaluated, train_step


def leftovers(net: nn.Module) -> list[str]:
    """Everything reachable from a net that speaks of netaug_fx's run time."""
    found = []
    for path, module in net.named_modules():
        found += [f"{path}.{key}" for key in module.__dict__ if "netaug" in key]
        found += [f"{path}.{key}" for key in (*module._parameters, *module._buffers) if "netaug" in key]
        found += [path for cls in type(module).__mro__ if cls.__module__ in ("netaug_fx.supernet", "netaug_fx.elastic")]
        hooks = [*module._state_dict_hooks.values(), *module._load_state_dict_pre_hooks.values()]
        found += [f"{path} {hook}" for hook in hooks if "netaug_fx.supernet" in str(getattr(hook, "__module__", ""))]
        found += [f"{path} {hook.hook}" for hook in hooks if hasattr(hook, "hook")]
    return found


def test_it_equals_the_model(model: nn.Module, supernet: Any) -> None:
    invariants.assert_extract_restores(supernet, model, INPUTS)
    tiny = netaug_fx.extract(supernet)
    assert type(tiny) is type(model)
    assert repr(tiny) == repr(model)
    for ours, theirs in zip(tiny.modules(), model.modules(), strict=True):
        for key in ("training", "groups", "num_features", "normalized_shape", "momentum"):
            assert ours.__dict__.get(key) == theirs.__dict__.get(key), key


def test_nothing_is_left_on_it(supernet: Any) -> None:
    assert leftovers(supernet)
    tiny = netaug_fx.extract(supernet)
    assert leftovers(tiny) == []
    assert not any("netaug" in key for key in tiny.state_dict())
    assert not hasattr(tiny, "augmented")
    data = pickle.dumps(tiny)
    assert b"netaug_fx.supernet" not in data
    assert b"netaug_fx.elastic" not in data
    assert STATE.encode() not in data.replace(b"netaug_fx", b"")
    assert CONTROL.encode() not in data


def test_the_supernet_is_unchanged_and_shares_no_memory(supernet: Any) -> None:
    supernet.sample()
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    classes = [type(module) for module in supernet.modules()]
    tiny = netaug_fx.extract(supernet)
    with torch.no_grad():
        for tensor in [*tiny.parameters(), *tiny.buffers()]:
            tensor.fill_(0)
    after = supernet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [type(module) for module in supernet.modules()] == classes
    with supernet.augmented(supernet.widest):
        assert evaluated(supernet).abs().sum() > 0


def test_only_the_tiny_net_is_copied(supernet: Any) -> None:
    tiny = netaug_fx.extract(supernet)
    del supernet
    gc.collect()
    assert sum(p.numel() for p in tiny.parameters()) == sum(p.numel() for p in digits_net().parameters())
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in tiny.parameters())


def test_modes_freezing_and_the_users_hooks_come_along(supernet: Any) -> None:
    calls: list[str] = []
    supernet.eval()
    supernet.stem.train()
    supernet.classifier.requires_grad_(False)
    supernet.stem.register_forward_hook(lambda *_: calls.append("stem"))
    supernet.register_state_dict_post_hook(lambda module, state, prefix, meta: calls.append("saved"))
    tiny = netaug_fx.extract(supernet)
    calls.clear()
    assert not tiny.training
    assert tiny.stem.training
    assert [name for name, p in tiny.named_parameters() if not p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    with torch.no_grad():
        tiny(X)
    tiny.state_dict()
    assert calls == ["stem", "saved"]


def test_within_an_augmented_context_it_is_still_the_target(model: nn.Module, supernet: Any) -> None:
    with supernet.augmented(supernet.widest):
        tiny = netaug_fx.extract(supernet)
    assert [p.shape for p in tiny.parameters()] == [p.shape for p in model.parameters()]
    assert torch.equal(evaluated(tiny), evaluated(model))


def test_it_trains_on_as_the_model_would(model: nn.Module, supernet: Any) -> None:
    nets = [model.eval(), netaug_fx.extract(supernet).eval()]
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(X).square().sum().backward()
        optimizer.step()
    invariants.assert_equal(list(nets[1].parameters()), list(nets[0].parameters()), "weights after a step")


def test_it_can_be_augmented_again(supernet: Any) -> None:
    again: Any = netaug_fx.augment(netaug_fx.extract(supernet), ratio=2)
    assert [group.name for group in again.groups] == [group.name for group in supernet.groups]
    assert torch.equal(evaluated(again), evaluated(supernet))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_duplicates_of_a_supernet_extract_alike(supernet: Any, duplicate: Any) -> None:
    tiny = netaug_fx.extract(duplicate(supernet))
    assert leftovers(tiny) == []
    assert torch.equal(evaluated(tiny), evaluated(supernet))


class Tied(nn.Module):
    """A tied weight, a weight-shared module, a plain tensor attribute and a forward that names its width."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.table.weight
        self.scale = torch.tensor(2.0)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.mix(self.mix(self.table(tokens)).relu()).view(tokens.shape[0], -1, 6)
        return self.out(hidden) * self.scale


def test_ties_and_rewritten_forwards_are_restored() -> None:
    model = Tied()
    inputs = ((torch.tensor([[1, 2, 3], [4, 5, 6]]),), {})
    supernet: Any = netaug_fx.augment(model, example_inputs=inputs[0])
    with supernet.augmented(supernet.widest):
        assert supernet(*inputs[0]).shape == (2, 3, 7)
        assert supernet.table.weight.shape == (7, 18)
    invariants.assert_extract_restores(supernet, model, inputs)
    tiny: Any = netaug_fx.extract(supernet)
    assert tiny.out.weight is tiny.table.weight
    assert "forward" not in vars(type(tiny)).keys() - vars(Tied).keys()
    assert leftovers(tiny) == []


def test_small_models_and_wholly_linear_ones() -> None:
    model = Mlp()
    supernet = netaug_fx.augment(model)
    invariants.assert_extract_restores(supernet, model, ((torch.randn(2, 4),), {}))


def test_train_sort_train_extract_verify(model: nn.Module, supernet: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9)
    for step in range(20):
        if step == 10:
            netaug_fx.sort_channels_(supernet, optimizer)
        x = torch.randn(8, 1, 8, 8, generator=generator)
        train_step(supernet, optimizer, x, torch.randint(10, (8,), generator=generator))
    tiny = netaug_fx.extract(supernet)
    assert not torch.equal(evaluated(tiny), evaluated(model))
    assert torch.equal(evaluated(tiny), evaluated(supernet))
    invariants.assert_target_is_the_model(supernet, tiny, INPUTS)
    report = netaug_fx.verify(tiny, model, example_inputs=X, onnx=False)
    assert report.passed, str(report)


def test_an_extracted_net_passes_every_check_of_verify() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
    supernet: Any = netaug_fx.augment(model, example_inputs=X)
    train_step(supernet, torch.optim.SGD(supernet.parameters(), lr=0.1))
    report = netaug_fx.verify(netaug_fx.extract(supernet), model, example_inputs=X)
    assert report.passed, str(report)
    assert "ONNX" in str(report)


def test_a_forward_that_was_replaced_after_augment_is_refused(supernet: Any) -> None:
    supernet.forward = lambda images: images
    with pytest.raises(InputError, match=r"forward of the supernet was replaced.*torch\.nn\.Sequential\(supernet\)"):
        netaug_fx.extract(supernet)
    del supernet.forward
    layer = next(module for module in supernet.modules() if isinstance(module, nn.Conv2d))
    layer.forward = lambda images: images
    with pytest.raises(InputError, match=r"module '.*' \(.*Conv2d\) was replaced"):
        netaug_fx.extract(supernet)


def test_a_class_s_own_forward_on_the_instance_leaves_no_trace(supernet: Any, model: nn.Module) -> None:
    """What accelerate leaves after unwrap_model(keep_fp32_wrapper=False)."""
    supernet.forward = MethodType(type(model).forward, supernet)
    assert "forward" not in vars(netaug_fx.extract(supernet))
