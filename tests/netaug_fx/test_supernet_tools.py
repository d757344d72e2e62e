"""The supernet among PyTorch's tools: copies, conversions, optimizers, hooks, averages, parametrizations."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import netaug_fx
from netaug_fx.errors import InputError
from netaug_fx.models import create, digits_net
from netaug_fx.passes.layout import recent
from netaug_fx.supernet import control
from tests import invariants
from tests.netaug_fx.small_nets import Mlp, X, Y, evaluated, train_step
from tests.wirings import WIRINGS

# -- copies, conversions, tools of PyTorch -----------------------------------------------------------------------------


def saved_and_loaded(net: Any) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved_and_loaded],
    ids=["copy", "pickle", "save"],
)
def test_duplicates_are_whole_and_independent(supernet: Any, duplicate: Any) -> None:
    supernet.sample()
    twin = duplicate(supernet)
    assert isinstance(twin, type(digits_net()))
    assert twin.groups == supernet.groups
    assert torch.equal(evaluated(twin), evaluated(supernet))
    with twin.augmented() as ours, supernet.augmented() as theirs:
        assert ours == theirs
        assert torch.equal(evaluated(twin), evaluated(supernet))
    with twin.augmented(twin.widest):
        assert supernet.widths != twin.widths  # one's context is not the other's
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in supernet.parameters()}
    twin.sample()
    assert control(twin).draws == control(supernet).draws + 1
    assert list(twin.state_dict()) == list(supernet.state_dict())
    assert type(netaug_fx.extract(twin)) is type(digits_net())


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda net: net.double(), torch.double),
        (lambda net: net.half(), torch.half),
        (lambda net: net.to(torch.bfloat16), torch.bfloat16),
        (lambda net: net.to("cpu", torch.double), torch.double),
    ],
    ids=["double", "half", "bfloat16", "to"],
)
def test_conversions_take_the_extras_along(model: nn.Module, supernet: Any, convert: Any, dtype: torch.dtype) -> None:
    convert(model)
    convert(supernet)
    x = X.to(dtype)
    assert {p.dtype for p in supernet.parameters()} == {dtype}
    assert torch.equal(evaluated(supernet, x), evaluated(model, x))
    with supernet.augmented(supernet.widest):
        assert evaluated(supernet, x).dtype == dtype
    assert supernet.state_dict()["netaug.draws"].dtype == torch.int64


@pytest.mark.parametrize("name", ["depthwise", "dense_running_concat"])
def test_weights_keep_their_memory_format(name: str) -> None:
    """At the target's widths, wider ones and all: a slice without elements, or an index, would lose it."""
    wiring = WIRINGS[name]
    supernet = netaug_fx.augment(wiring.build(), 3, example_inputs=wiring.inputs(2))
    supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    convolutions = [m for m in supernet.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert convolutions
    for widths in (*invariants.assignments(supernet), {supernet.groups[0].name: supernet.groups[0].choices[-1]}):
        with supernet.augmented(widths):
            for convolution in convolutions:
                assert convolution.weight.is_contiguous(memory_format=torch.channels_last), widths


NETS_IN_CHANNELS_LAST = {
    "pooling_runs_another_operator": lambda: (create("resnet20"), torch.randn(2, 3, 32, 32)),
    "a_kernel_of_one_pixel_decides_the_order": lambda: (
        WIRINGS["literal_in_child"].build(),
        WIRINGS["literal_in_child"].inputs(2)[0][0],
    ),
}


@pytest.mark.parametrize("images_too", [False, True])
@pytest.mark.parametrize("build", NETS_IN_CHANNELS_LAST.values(), ids=NETS_IN_CHANNELS_LAST)
def test_a_model_in_channels_last_grows_as_much(build: Any, images_too: bool) -> None:
    """Operators depend on the order in memory: widths at which it was another were to stay, of these nets all."""
    model, images = build()
    usual: Any = netaug_fx.augment(model, 2, example_inputs=images)
    model.to(memory_format=torch.channels_last)
    if images_too:
        images = images.to(memory_format=torch.channels_last)
    other: Any = netaug_fx.augment(model, 2, example_inputs=images)
    assert [(g.name, g.choices) for g in other.groups] == [(g.name, g.choices) for g in usual.groups]
    weights = [p for p in other.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert torch.equal(evaluated(other, images), evaluated(model, images))
    with usual.augmented(usual.widest), other.augmented(other.widest):
        assert torch.allclose(evaluated(other, images), evaluated(usual, images), atol=1e-4)


def test_what_is_found_without_gradients_serves_training() -> None:
    wiring = WIRINGS["dense_running_concat"]
    inputs = wiring.inputs(2)
    supernet = netaug_fx.augment(wiring.build(), 3, example_inputs=inputs)
    recent.clear()
    with torch.inference_mode(), supernet.augmented(supernet.widest):
        invariants.run(supernet, inputs)
    with supernet.augmented(supernet.widest):
        invariants.loss(invariants.run(supernet, inputs)).backward()
    assert all(parameter.grad is not None for parameter in supernet.parameters())


def test_the_meta_device_takes_all_of_it(supernet: Any) -> None:
    supernet.to("meta")
    assert all(p.is_meta for p in supernet.parameters())
    with supernet.augmented(supernet.widest):
        assert supernet(X.to("meta")).shape == (4, 10)


def test_freezing_the_target_trains_only_the_extras(supernet: Any) -> None:
    supernet.requires_grad_(False)
    assert not any(p.requires_grad for p in supernet.parameters())
    for name, parameter in supernet.named_parameters():
        parameter.requires_grad_("netaug" in name)
    with supernet.augmented(supernet.widest):
        supernet(X).sum().backward()
    assert all((p.grad is not None) == ("netaug" in name) for name, p in supernet.named_parameters())


def test_optimizer_groups_and_gradient_clipping(supernet: Any) -> None:
    named = dict(supernet.named_parameters())
    extras = [p for name, p in named.items() if "netaug" in name]
    target = [p for name, p in named.items() if "netaug" not in name]
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.SGD([{"params": target, "lr": 0.1}, {"params": extras, "lr": 0.0}])
    with supernet.augmented(supernet.widest):
        nn.functional.cross_entropy(supernet(X) * 100, Y).backward()
    assert clip_grad_norm_(supernet.parameters(), 1e-3) > 1e-3
    total = torch.stack([p.grad.norm() for p in supernet.parameters()]).norm()
    torch.testing.assert_close(total, torch.tensor(1e-3), rtol=1e-3, atol=0)
    optimizer.step()
    moved = {name for name, p in named.items() if not torch.equal(p, before[name])}
    assert moved
    assert not any("netaug" in name for name in moved)


def test_hooks_see_the_widths(supernet: Any) -> None:
    seen: list[tuple[str, int]] = []
    for name in ("stem", "blocks.1.body.expand.conv"):
        supernet.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.append((name, out.shape[1]))
        )
    supernet.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    doubled = evaluated(supernet)
    with supernet.augmented(supernet.widest):
        evaluated(supernet)
    expand = "blocks.1.body.expand.conv"
    assert seen == [("stem", 8), (expand, 24), ("stem", 24), (expand, 72)]
    assert not torch.equal(doubled, evaluated(copy.deepcopy(netaug_fx.extract(supernet)).train(False), X / 2))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_copies(supernet: Any, use_buffers: bool) -> None:
    average = AveragedModel(supernet, use_buffers=use_buffers)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1)
    seen: list[Tensor] = []
    for _ in range(2):
        train_step(supernet, optimizer)
        average.update_parameters(supernet)
        seen.append(supernet.stem.conv.weight_netaug0.detach().clone())
    torch.testing.assert_close(average.module.stem.conv.weight_netaug0.detach(), (seen[0] + seen[1]) / 2)
    assert evaluated(average).shape == (4, 10)
    tiny = netaug_fx.extract(average.module)
    assert torch.equal(evaluated(tiny), evaluated(average))
    other = AveragedModel(copy.deepcopy(supernet), use_buffers=use_buffers)
    other.load_state_dict(average.state_dict())
    assert torch.equal(evaluated(other), evaluated(average))


def test_functional_calls(model: nn.Module, supernet: Any) -> None:
    other = digits_net(dropout=0.1)
    weights = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    out = torch.func.functional_call(supernet.eval(), weights, (X,))
    assert torch.equal(out, evaluated(other))
    assert torch.equal(evaluated(supernet), evaluated(model))


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrizations_come_before_augment() -> None:
    model = Mlp()
    parametrize.register_parametrization(model.first, "weight", Double())
    x = torch.randn(3, 4)
    supernet = netaug_fx.augment(model)
    assert torch.equal(supernet(x), model(x))
    with supernet.augmented(supernet.widest):
        original = supernet.first.parametrizations.weight.original
        assert original.shape == (24, 4)
        assert torch.equal(supernet.first.weight, 2 * original)
        supernet(x).sum().backward()
    tiny = netaug_fx.extract(supernet)
    assert parametrize.is_parametrized(tiny.first)
    assert torch.equal(tiny(x), model(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: parametrize.register_parametrization(layer, "weight", Double()),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: torch.nn.utils.spectral_norm(layer),
    ],
    ids=["parametrize", "prune", "spectral_norm"],
)
def test_computed_weights_after_augment_are_refused(change: Any) -> None:
    supernet = netaug_fx.augment(Mlp())
    x = torch.randn(3, 4)
    before = supernet(x)
    with pytest.raises(InputError, match=r"'weight' of Linear follows the supernet's widths.*before netaug_fx\.aug"):
        change(supernet.first)
    assert torch.equal(supernet(x), before)
    with supernet.augmented(supernet.widest):
        assert supernet(x).shape == (3, 2)
