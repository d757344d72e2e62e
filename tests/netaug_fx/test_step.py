"""``step``: the gradients of a loop written out by hand, whatever runs the backward passes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import netaug_fx
from netaug_fx.errors import InputError
from netaug_fx.supernet import STATE_KEY, control
from tests.netaug_fx.small_nets import Mlp, X, Y

GENERATOR = torch.Generator().manual_seed(3)
FEATURES, LABELS = torch.randn(16, 4, generator=GENERATOR), torch.randint(2, (16,), generator=GENERATOR)


def make_supernet() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    return netaug_fx.augment(model, ratio=3, seed=5)


def cross_entropy(net: nn.Module) -> Tensor:
    return F.cross_entropy(net(FEATURES), LABELS)


def with_output(net: nn.Module) -> tuple[Tensor, Tensor]:
    logits = net(FEATURES)
    return F.cross_entropy(logits, LABELS), logits


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


def test_a_step_is_the_loop_of_the_paper() -> None:
    by_hand, supernet = make_supernet(), make_supernet()
    loss = cross_entropy(by_hand)
    loss.backward()
    with by_hand.augmented() as widths:
        augmented = cross_entropy(by_hand)
        augmented.backward()
    done = netaug_fx.step(supernet, cross_entropy)
    assert same(gradients(supernet), gradients(by_hand))
    assert (done.loss, done.augmented, done.widths, done.output) == (loss, (augmented,), (widths,), None)
    assert not done.loss.requires_grad


def test_alpha_weighs_every_wider_net() -> None:
    by_hand, supernet = make_supernet(), make_supernet()
    cross_entropy(by_hand).backward()
    for _ in range(3):
        with by_hand.augmented():
            (0.5 * cross_entropy(by_hand)).backward()
    done = netaug_fx.step(supernet, cross_entropy, alpha=0.5, draws=3)
    assert same(gradients(supernet), gradients(by_hand))
    assert len(done.augmented) == len(done.widths) == 3


def test_gradients_of_several_batches_add_up() -> None:
    once, twice = make_supernet(), make_supernet()
    widths = once.widest
    netaug_fx.step(twice, cross_entropy, pool=1)
    netaug_fx.step(twice, cross_entropy, pool=1)
    netaug_fx.step(once, cross_entropy, pool=1)
    assert widths == twice.widest
    assert close(gradients(twice), {name: 2 * value for name, value in gradients(once).items()})


def test_backward_gets_every_loss() -> None:
    plain, scaled = make_supernet(), make_supernet()
    netaug_fx.step(plain, cross_entropy)
    seen: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        seen.append(loss.detach())
        (8 * loss).backward()

    done = netaug_fx.step(scaled, cross_entropy, backward=backward)
    assert seen == [done.loss, done.augmented[0]]
    assert close(gradients(scaled), {name: 8 * value for name, value in gradients(plain).items()})


def test_only_the_last_pass_communicates() -> None:
    entered: list[str] = []

    class Quiet(nullcontext[None]):
        def __enter__(self) -> None:
            entered.append("quiet")

        def __exit__(self, *_: object) -> None:
            entered.append("loud")

    supernet = make_supernet()
    netaug_fx.step(supernet, cross_entropy, no_sync=Quiet, backward=lambda _: entered.append("backward"), draws=2)
    assert entered == ["quiet", "backward", "loud", "quiet", "backward", "loud", "backward"]


def test_kinds_and_pool_reach_the_draws() -> None:
    supernet = netaug_fx.augment(netaug_fx.models.create("digits_net"), ratio=3, seed=1)

    def loss(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(X), Y)

    streams = {group.name: group.width for group in supernet.groups if group.kind == "stream"}
    (widths,) = netaug_fx.step(supernet, loss, kinds={"inner"}).widths
    assert streams.items() <= widths.items()
    pooled = [supernet.sample(pool=3) for _ in range(40)]
    assert len({tuple(widths.values()) for widths in pooled}) == 3
    twin = netaug_fx.augment(netaug_fx.models.create("digits_net"), ratio=3, seed=1)
    assert {tuple(twin.sample(pool=3).values()) for _ in range(40)} == {tuple(widths.values()) for widths in pooled}
    others = [netaug_fx.step(supernet, loss, pool=3, pool_number=1).widths[0] for _ in range(20)]
    assert len({tuple(widths.values()) for widths in others}) == 3
    assert not any(widths in pooled for widths in others)


def test_in_place_distillation_teaches_the_target_with_the_widest_net() -> None:
    by_hand, supernet = make_supernet(), make_supernet()
    teach = netaug_fx.Distillation(weight=0.7, temperature=2.0)
    with by_hand.augmented(by_hand.widest):
        loss, teacher = with_output(by_hand)
        loss.backward()
    loss, student = with_output(by_hand)
    (loss + teach(student, teacher.detach())).backward()
    with by_hand.augmented() as drawn:
        cross_entropy(by_hand).backward()
    done = netaug_fx.step(supernet, with_output, distill=teach, draws=2)
    assert same(gradients(supernet), gradients(by_hand))
    assert done.widths == (by_hand.widest, drawn)
    assert torch.equal(done.output, student.detach())


def test_the_teacher_is_widest_in_the_kinds_that_are_widened() -> None:
    supernet = netaug_fx.augment(netaug_fx.models.create("digits_net"), ratio=3)

    def loss(net: nn.Module) -> tuple[Tensor, Tensor]:
        logits = net(X)
        return F.cross_entropy(logits, Y), logits

    (widths,) = netaug_fx.step(supernet, loss, kinds={"inner"}, distill=netaug_fx.Distillation()).widths
    for group in supernet.groups:
        assert widths[group.name] == (group.choices[-1] if group.kind == "inner" else group.width)


def test_the_teacher_is_no_wider_than_what_can_be_drawn() -> None:
    """Where inner factors multiply with the stream's, which stays in the second phase."""
    ratio = {"stream": [1, 1.8, 2.6], "inner": [1, 1.6, 2.2, 2.8]}
    supernet = netaug_fx.augment(netaug_fx.models.create("digits_net"), ratio=ratio, compound=True)
    drawn = [supernet.sample({"inner"}) for _ in range(60)]
    widest = control(supernet).widest({"inner"})
    assert widest == {name: max(widths[name] for widths in drawn) for name in widest}
    assert any(widest[group.name] < group.choices[-1] for group in supernet.groups if group.feeder)
    assert supernet.widest == {group.name: group.choices[-1] for group in supernet.groups}


@pytest.mark.parametrize("distill", [None, netaug_fx.Distillation()])
def test_the_wider_nets_of_a_step_can_be_taken_again(distill: netaug_fx.Distillation | None) -> None:
    supernet, twin = make_supernet(), make_supernet()
    first = netaug_fx.step(supernet, with_output, draws=3, distill=distill)
    assert supernet.state_dict()[STATE_KEY].equal(torch.tensor([5, 3 - (distill is not None)]))
    again = netaug_fx.step(twin, with_output, widths=first.widths, distill=distill)
    assert again.widths == first.widths
    assert same(gradients(twin), gradients(supernet))
    assert twin.state_dict()[STATE_KEY].equal(torch.tensor([5, 0])), "nothing is drawn"
    with pytest.raises(InputError, match="widths holds no wider net"):
        netaug_fx.step(twin, with_output, widths=[])
    with pytest.raises(InputError, match="unknown group 'none'"):
        netaug_fx.step(twin, with_output, widths=[*first.widths, {"none": 3}])
    assert same(gradients(twin), gradients(supernet)), "what is wrong is told before any pass"


def test_distillation_without_an_output_is_told_before_any_gradient() -> None:
    supernet = make_supernet()
    with pytest.raises(InputError, match="let loss_fn return the pair of loss and output"):
        netaug_fx.step(supernet, cross_entropy, distill=netaug_fx.Distillation())
    assert gradients(supernet) == {}
    with pytest.raises(InputError, match="alpha must be above 0 and finite, not inf"):
        netaug_fx.step(supernet, cross_entropy, alpha=float("inf"))


def test_distillation_is_zero_between_equals_and_keeps_its_scale() -> None:
    logits = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    other = torch.randn(5, 3, dtype=torch.double)
    assert float(netaug_fx.Distillation()(logits, logits)) == pytest.approx(0)
    cold = torch.autograd.grad(netaug_fx.Distillation(temperature=50.0)(logits, other), logits)[0]
    warm = torch.autograd.grad(netaug_fx.Distillation(temperature=100.0)(logits, other), logits)[0]
    assert torch.allclose(cold, warm, rtol=0.1)
    by_definition = F.kl_div(logits.log_softmax(-1), other.softmax(-1), reduction="batchmean")
    assert float(netaug_fx.Distillation()(logits, other)) == pytest.approx(float(by_definition))


def parts(supernet: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the target alone, and of the wider net that is drawn next."""
    cross_entropy(supernet).backward()
    target = gradients(supernet)
    supernet.zero_grad()
    with supernet.augmented():
        cross_entropy(supernet).backward()
    return target, gradients(supernet)


def conflict(target: dict[str, Tensor], wider: dict[str, Tensor]) -> Tensor:
    return torch.stack([(target[name] * wider[name]).sum() for name in target]).sum()


@pytest.mark.parametrize("reverse", [False, True])
def test_projection_removes_a_conflict_and_nothing_else(reverse: bool) -> None:
    supernet = make_supernet()
    calls: list[int] = []

    def loss(net: nn.Module) -> Tensor:
        """The same loss for both nets, or for the wider one its negative, so that the gradients conflict."""
        calls.append(1)
        return cross_entropy(net) * (-1 if reverse and len(calls) == 2 else 1)

    target, wider = parts(make_supernet())
    wider = {name: -value if reverse else value for name, value in wider.items()}
    assert bool(conflict(target, wider) < 0) is reverse, "the example no longer shows what it is for"
    netaug_fx.step(supernet, loss, project=True)
    found = gradients(supernet)
    kept = {name: value - target.get(name, torch.zeros(())) for name, value in found.items()}
    if reverse:
        assert float(conflict(target, kept)) == pytest.approx(0, abs=1e-6)
        share = conflict(target, wider) / conflict(target, target)
        assert close(kept, {n: v - share * target.get(n, torch.zeros(())) for n, v in wider.items()})
    else:
        assert close(kept, wider)


def test_projection_keeps_gradients_from_before() -> None:
    once, twice = make_supernet(), make_supernet()
    netaug_fx.step(once, cross_entropy, project=True, pool=1)
    for _ in range(2):
        netaug_fx.step(twice, cross_entropy, project=True, pool=1)
    assert close(gradients(twice), {name: 2 * value for name, value in gradients(once).items()})


def test_a_resumed_run_draws_the_same_widths() -> None:
    supernet = make_supernet()
    netaug_fx.step(supernet, cross_entropy)
    twin = make_supernet()
    twin.load_state_dict(supernet.state_dict())
    assert netaug_fx.step(supernet, cross_entropy).widths == netaug_fx.step(twin, cross_entropy).widths


def test_a_model_with_attributes_of_the_same_names() -> None:
    class Sampler(Mlp):
        def sample(self) -> str:
            return "mine"

    supernet = netaug_fx.augment(Sampler(), ratio=2)
    done = netaug_fx.step(supernet, cross_entropy)
    assert supernet.sample() == "mine"
    assert done.widths[0].keys() == {"first"}


def test_steps_work_in_a_copy() -> None:
    supernet = make_supernet()
    twin = copy.deepcopy(supernet)
    netaug_fx.step(supernet, cross_entropy)
    netaug_fx.step(twin, cross_entropy)
    assert same(gradients(twin), gradients(supernet))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"distill": True}, r"distill must be a netaug_fx\.Distillation, such as .*not True"),
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"pool": 0}, "pool must be the number of assignments"),
        ({"pool": 2, "pool_number": -1}, "pool_number must be a whole number from 0"),
        ({"kinds": "inner"}, "kinds must be a collection"),
        ({"distill": netaug_fx.Distillation()}, "let loss_fn return the pair of loss and output"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        netaug_fx.step(make_supernet(), cross_entropy, **arguments)


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"Mlp holds no supernet: give what netaug_fx\.augment"):
        netaug_fx.step(Mlp(), cross_entropy)


def test_within_an_augmented_pass_it_is_refused() -> None:
    supernet = make_supernet()
    with supernet.augmented(), pytest.raises(InputError, match="leave the context"):
        netaug_fx.step(supernet, cross_entropy)


def test_a_loss_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"loss_fn must return the loss.*not \(16, 2\)"):
        netaug_fx.step(make_supernet(), lambda net: net(FEATURES))


@pytest.mark.parametrize("name", ["weight", "temperature"])
def test_distillation_needs_positive_numbers(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} of a Distillation must be above 0"):
        netaug_fx.Distillation(**{name: 0.0})


def test_a_dict_of_losses_is_their_sum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, found = torch.randn(6, 4), []
    for parts in (
        lambda y: y.square().mean() + y.abs().mean(),
        lambda y: {"a": y.square().mean(), "b": y.abs().mean()},
    ):
        supernet = netaug_fx.augment(model, seed=3)
        done = netaug_fx.step(supernet, lambda net, parts=parts: parts(net(x)))
        found.append([done.loss, *done.augmented, *(parameter.grad for parameter in supernet.parameters())])
    assert len(found[0]) == len(found[1])
    for summed, each in zip(*found, strict=True):
        torch.testing.assert_close(summed, each)
    with pytest.raises(InputError, match="each a tensor of one number; 'b' is none"):
        netaug_fx.step(supernet, lambda net: {"a": net(x).mean(), "b": net(x)})
