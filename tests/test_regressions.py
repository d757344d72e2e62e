"""Nets that were once handled wrongly, each named after what broke."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import BranchError
from netaug_fx.passes.infer import infer
from netaug_fx.passes.macs import count
from netaug_fx.supernet import control
from tests import invariants


def augmented(model: nn.Module, *inputs: Tensor) -> netaug_fx.Supernet:
    """The supernet of a net with random statistics, held against all invariants."""
    given: Any = (inputs, {})
    supernet = netaug_fx.augment(model, 3, example_inputs=inputs)
    invariants.assert_target_is_the_model(supernet, model, given)
    invariants.assert_extract_restores(supernet, model, given)
    invariants.assert_augmented_step_reaches_everything(supernet, given)
    invariants.assert_zeroed_extras_give_the_target(supernet, given)
    return supernet


def grows(supernet: nn.Module, name: str) -> bool:
    return any(tensor.full_name == name and tensor.dims for _, tensor in invariants.elastic_tensors(supernet))


def reasons(supernet: nn.Module, name: str) -> str:
    return " ".join(f"{pin.reason} {pin.op}" for pin in control(supernet).pins if pin.tensor == name)


class SizesAsArguments(nn.Module):
    """Height and width are handed to a block as integers, as pyramid vision transformers do."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.depthwise, self.fc2 = (
                nn.Linear(6, 10),
                nn.Conv2d(10, 10, 3, 1, 1, groups=10),
                nn.Linear(10, 6),
            )

        def forward(self, x: Tensor, h: int, w: int) -> Tensor:
            x = self.fc1(x)
            b, _, c = x.shape
            x = self.depthwise(x.transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2)
            return self.fc2(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 2, 2), self.Block(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h, w = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        return self.head((x + self.block(x, h, w)).mean(1))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 3, 4, 16), (1, 3, 4, 4)])
def test_sizes_handed_on_as_arguments_follow_the_input(shape: tuple[int, ...]) -> None:
    model = SizesAsArguments()
    supernet = augmented(model, torch.randn(2, 3, 8, 8))
    assert grows(supernet, "block.fc1.weight")
    other = torch.randn(*shape)
    invariants.assert_target_is_the_model(supernet, model, ((other,), {}))
    invariants.assert_zeroed_extras_give_the_target(supernet, ((other,), {}))


class RandomBranch(nn.Module):
    """Python's own random numbers decide, beside a literal width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3)).view(-1, 6)
        if random.random() < 0.5:
            x = x * 2.0
        return self.head(x)


def test_python_randomness_stays_in_the_target() -> None:
    model = RandomBranch()
    x = torch.randn(2, 3, 4, 4)
    supernet = netaug_fx.augment(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), model), example_inputs=x)
    assert not any(0 in t.dims for _, t in invariants.elastic_tensors(supernet) if t.full_name == "2.stem.weight")
    plain = netaug_fx.extract(supernet)
    for seed in range(10):
        random.seed(seed)
        ours = supernet(x)
        random.seed(seed)
        assert torch.equal(ours, plain(x))


class KeepsFeatures(nn.Module):
    """A helper method assigns an attribute, beside a literal width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 6, 1))
        self.head, self.gain = nn.Linear(6, 5), 1.0

    def keep(self, x: Tensor) -> None:
        self.last = x.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).mean((2, 3)).view(-1, 6) * self.gain
        self.keep(x)
        return self.head(x)


def test_target_runs_the_users_own_forward() -> None:
    supernet = netaug_fx.augment(KeepsFeatures(), example_inputs=torch.randn(2, 3, 4, 4))
    assert grows(supernet, "inner.0.weight")
    x = torch.randn(2, 3, 4, 4)
    before = supernet(x)
    assert torch.equal(supernet.last, supernet.inner(x).mean((2, 3)))
    supernet.gain = 3.0
    assert not torch.allclose(supernet(x), before)


class CropAndSlice(nn.Module):
    """Rows are cropped to as many as channels are sliced: equal numbers, unrelated sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.left, self.right = nn.Conv2d(8, 7, 1), nn.Conv2d(4, 7, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x[:, :, :8])
        x = self.left(x[:, :8]) + self.right(x[:, 8:])
        return self.head(x.mean((2, 3)))


def test_equal_numbers_tie_nothing() -> None:
    supernet = augmented(CropAndSlice(), torch.randn(2, 3, 10, 6))
    assert {group.width for group in supernet.groups} == {8, 4, 7}


class KeyValueCache(nn.Module):
    """Keys and values are written into buffers, and read back from there."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 5)
        self.register_buffer("keys", torch.zeros(4, 8, 6), persistent=False)
        self.register_buffer("values", torch.zeros(4, 8, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        self.keys[:b, :n] = self.k(x)
        self.values[:b, :n] = self.v(x)
        weights = (self.q(x) @ self.keys[:b, :n].transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.values[:b, :n]).mean(1))


def test_a_cache_is_an_activation() -> None:
    model = KeyValueCache()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        supernet = netaug_fx.augment(model, example_inputs=x)
    assert not any(
        0 in tensor.dims for _, tensor in invariants.elastic_tensors(supernet) if tensor.full_name == "q.weight"
    )
    assert "two activations" in reasons(supernet, "q.weight")
    with torch.no_grad():
        invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


class Preallocated(nn.Module):
    """An activation is written into zeros made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(self.a(x))
        h[:, 1:] = self.a(x)[:, :-1]
        return self.d(self.c(h).relu()).mean(1)


def test_zeros_written_into_are_an_activation() -> None:
    supernet = augmented(Preallocated(), torch.randn(2, 3, 4))
    contracted = {
        tensor.full_name: tensor.contracted for _, tensor in invariants.elastic_tensors(supernet) if tensor.dims
    }
    assert contracted["c.weight"] == (1,)
    assert contracted["d.weight"] == (1,)


class PermutedByBuffer(nn.Module):
    """A buffer numbers the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1), nn.Linear(7, 5)
        self.register_buffer("order", torch.tensor([5, 2, 1, 3, 0, 6, 7, 4]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x)[:, self.order]).mean((2, 3)))


def test_numbers_in_buffers_are_never_widened_nor_sorted() -> None:
    model = PermutedByBuffer()
    supernet = augmented(model, torch.randn(2, 3, 4, 4))
    netaug_fx.sort_channels_(supernet, kinds=("stream", "inner"))
    tiny = netaug_fx.extract(supernet)
    assert torch.equal(tiny.order, model.order)
    model.load_state_dict(tiny.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), tiny(x))


class ScaledByWidth(nn.Module):
    """The number of channels is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(x * x.shape[1] ** -0.5).mean((2, 3)))


def test_a_width_used_as_a_number_stays_the_targets() -> None:
    inputs = torch.randn(2, 3, 4, 4)
    supernet = augmented(ScaledByWidth(), inputs)
    assert grows(supernet, "stem.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((inputs,), {}))


class OwnNorm(nn.Module):
    """A norm of the user's own, with running statistics and a momentum that must be a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=self.momentum)


def test_a_norm_of_the_users_own_is_calibrated() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), OwnNorm(6), nn.Conv2d(6, 5, 1))
    batches = [torch.randn(8, 3, 4, 4) for _ in range(3)]
    supernet = netaug_fx.augment(model, example_inputs=batches[0])
    netaug_fx.calibrate_(supernet, batches)
    expected = torch.stack([model[0](x).mean((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(supernet[1].running_mean, expected, rtol=1e-4, atol=1e-5)
    assert supernet[1].momentum == 0.1
    netaug_fx.calibrate_(supernet, batches, supernet.widest)
    supernet.double().eval()
    with supernet.augmented(supernet.widest):
        assert supernet(batches[0].double()).dtype == torch.double


def test_calibrated_statistics_end_with_the_weights_they_belong_to() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1))
    x = torch.randn(4, 3, 4, 4)
    supernet = netaug_fx.augment(model, example_inputs=x)
    netaug_fx.calibrate_(supernet, [x], supernet.widest)
    assert len(control(supernet).calibrated) == 1
    supernet.load_state_dict(supernet.state_dict())
    assert len(control(supernet).calibrated) == 0
    netaug_fx.calibrate_(supernet, [x], supernet.widest)
    with supernet.train().augmented():
        supernet(x)
    assert len(control(supernet).calibrated) == 0


def test_two_slices_of_one_module_need_not_agree() -> None:
    class TwoSlices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 7, 1), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(self.stem(x))
            return self.head(y.mean((2, 3))) + x[:, :2].mean() + y[:, 2:4].mean()

    model = TwoSlices()
    analysis = infer(model, ((torch.randn(2, 3, 9, 9),), {}))
    assert set(analysis.tensors) == {name for name, _ in model.named_parameters()}
    netaug_fx.augment(model, example_inputs=torch.randn(2, 3, 9, 9))


class Gate(nn.Module):
    """A norm over one channel, as in the gate of an attention U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mask, self.norm, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 1, 1),
            nn.BatchNorm2d(1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * self.norm(self.mask(x)).sigmoid())


def test_a_norm_over_one_channel_keeps_the_targets_statistics() -> None:
    x = torch.randn(4, 3, 8, 8)
    supernet = augmented(Gate(), x)
    supernet.norm.running_mean.fill_(123.0)
    netaug_fx.calibrate_(supernet, [x])
    torch.testing.assert_close(supernet.norm.running_mean, supernet.mask(supernet.stem(x)).mean((0, 2, 3)).detach())


class PooledByVector(nn.Module):
    """A vector is summed over: attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.query, self.outer = nn.Linear(4, 8), nn.Parameter(torch.randn(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).tanh()
        return x + self.outer((h @ self.query).softmax(1).unsqueeze(-1) * h)


def test_vectors_that_are_summed_over_are_sorted() -> None:
    x = torch.randn(2, 3, 4)
    supernet = augmented(nn.Sequential(PooledByVector(), PooledByVector()), x).double()
    before = invariants.run_widest(supernet, ((x.double(),), {}))
    netaug_fx.sort_channels_(supernet, kinds=("stream", "inner"))
    after = invariants.run_widest(supernet, ((x.double(),), {}))
    torch.testing.assert_close(after, before)


class CausalMask(nn.Module):
    """A mask kept in a buffer is cut to the length of the input, beside literal widths."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.embed, self.qkv, self.proj = nn.Linear(5, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)
        self.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, c = x.size()
        q, k, v = self.qkv(x).split(self.width, dim=2)
        k, q, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in (k, q, v))
        att = (q @ k.transpose(-2, -1)) * (k.size(-1) ** -0.5)
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf")).softmax(-1)
        return self.head(x + self.proj((att @ v).transpose(1, 2).contiguous().view(b, t, c)))


def test_a_causal_mask_in_a_buffer_hinders_nothing() -> None:
    supernet = augmented(CausalMask(), torch.randn(2, 7, 5))
    assert sorted(group.choices for group in supernet.groups) == [(3, 6, 9), (12, 24, 36)]
    other = torch.randn(3, 4, 5)
    invariants.assert_zeroed_extras_give_the_target(supernet, ((other,), {}))


def test_a_compiled_model_is_refused() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    with pytest.raises(netaug_fx.NetAugError, match=r"is compiled: give the model before torch\.compile"):
        netaug_fx.augment(model, example_inputs=torch.randn(2, 3))


def test_a_copy_made_within_an_augmented_pass_is_a_target() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3)
    supernet = netaug_fx.augment(model, example_inputs=x)
    with supernet.augmented(supernet.widest):
        twins = copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))
        with pytest.raises(netaug_fx.NetAugError, match="within augmented"):
            netaug_fx.calibrate_(supernet, [x])
    for twin in twins:
        assert twin.widths == {"0": 4}
        assert torch.equal(twin(x), model(x))


def test_counting_takes_outputs_that_are_expanded_parameters() -> None:
    class ActorCritic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.log_std = nn.Linear(4, 2), nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(x), self.log_std.expand(x.shape[0], -1)

    assert count(ActorCritic(), torch.randn(1, 4)).macs == 8


@functools.lru_cache
def numbered(count: int) -> Tensor:
    return torch.arange(count).view(-1, 1) + 0


class RemembersForTheProcess(nn.Module):
    """Calls a function whose results are kept for the whole process."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + numbered(x.shape[1]).float()


def test_results_kept_for_the_process_are_real_ones() -> None:
    numbered.cache_clear()
    model, x = RemembersForTheProcess(), torch.randn(2, 5, 3)
    netaug_fx.inspect(model, example_inputs=x)
    assert type(model(x)) is Tensor
    assert type(numbered(5)) is Tensor


class SizesAsOneTuple(nn.Module):
    """Puts a shape together from a tuple and a literal, as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.view(-1, x.size(-1)) @ self.weight).view(x.size()[:-1] + (6,))  # noqa: RUF005
        return self.head(hidden)


def test_sizes_put_together_from_tuples_follow_the_widths() -> None:
    x = torch.randn(2, 5, 3)
    supernet = augmented(SizesAsOneTuple(), x)
    assert grows(supernet, "weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))
    with netaug_fx.supernet.Supernet.augmented(supernet):
        assert supernet(torch.randn(3, 4, 3)).shape == (3, 4, 2), "other inputs than the example's"


class GuardsItsWidth(nn.Module):
    """Refuses other widths than it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width = nn.Linear(3, 6), nn.Linear(6, 2), 6

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.a(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} channels")
        return self.b(x if mask is None else x * mask)


def test_a_guard_on_a_width_lets_wider_nets_pass() -> None:
    x = torch.randn(2, 5, 3)
    supernet = augmented(GuardsItsWidth(), x)
    assert grows(supernet, "a.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


def test_an_argument_that_the_example_left_out_is_refused_in_a_wider_net_alone() -> None:
    x, mask = torch.randn(2, 5, 3), torch.ones(2, 5, 1)
    model = GuardsItsWidth()
    supernet = augmented(model, x)
    assert torch.equal(supernet(x, mask), model(x, mask))
    with pytest.raises(BranchError, match="argument 'mask'"), supernet.augmented():
        supernet(x, mask)


class CachesInABuffer(nn.Module):
    """Keeps positions in a buffer of no elements until they are first asked for, as ConViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("positions", torch.zeros(1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.positions.shape[0] != x.shape[1]:
            self.positions = torch.linspace(0, 1, x.shape[1])[:, None].to(x.dtype)
        return self.b(self.a(x)) + self.positions


def test_a_cache_in_a_buffer_is_no_hindrance() -> None:
    x = torch.randn(2, 5, 3)
    supernet = augmented(CachesInABuffer(), x)
    assert grows(supernet, "a.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))
    with supernet.augmented():
        assert supernet(x).shape == (2, 5, 2)


class ChoosesItsForward(nn.Module):
    """Chooses one of its methods when it is built, as FasterNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.forward = self.on_a_part

    def on_a_part(self, x: Tensor) -> Tensor:
        first, rest = x.split([4, 8], 1)
        return torch.cat([self.conv(first), rest], 1)


def test_a_forward_chosen_by_the_instance_is_rewritten_and_given_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), ChoosesItsForward(), nn.ReLU(), nn.Conv2d(12, 5, 1))
    inputs = ((torch.randn(2, 3, 6, 6),), {})
    supernet = netaug_fx.augment(model, example_inputs=inputs[0])
    assert grows(supernet, "1.conv.weight")
    for net in (supernet, copy.deepcopy(supernet)):
        invariants.assert_target_is_the_model(net, model, inputs)
        invariants.assert_zeroed_extras_give_the_target(net, inputs)
        invariants.assert_extract_restores(net, model, inputs)
    tiny = netaug_fx.extract(supernet)
    assert tiny[1].forward.__self__ is tiny[1]


class WritesInPlace(nn.Module):
    """Adds and divides in place, next to a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, 2, 3)
        x += 1.0
        x /= 2.0
        x *= 3.0
        x -= 0.5
        return self.b(x.view(-1, 6))


def test_writing_in_place_is_followed() -> None:
    x = torch.randn(4, 3)
    supernet = augmented(WritesInPlace(), x)
    assert grows(supernet, "a.weight")
    invariants.assert_zeroed_extras_give_the_target(supernet, ((x,), {}))


class ReturnsADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.a(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)
        return {"logits": self.b(hidden), "more": [x.mean()]}


def test_a_forward_that_returns_a_dict_is_rewritten() -> None:
    x = torch.randn(4, 3)
    supernet = augmented(ReturnsADict(), x)
    assert grows(supernet, "a.weight")
    with supernet.augmented():
        assert type(supernet(x)) is dict


class CutsUnevenly(nn.Module):
    """Eleven channels, joined as 8 and 3, are cut in two by one number, 6 and 5, and the parts change places."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.left, self.right, self.how = nn.Linear(4, 8), nn.Linear(4, 3), how
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        if self.how == "chunk":
            first, second = joined.chunk(2, 1)
        elif self.how == "chunk by keywords":
            first, second = torch.chunk(joined, chunks=2, dim=1)
        elif self.how == "split":
            first, second = joined.split(6, dim=1)
        else:
            first, second = torch.split(joined, 6, 1)
        return self.head(torch.cat([second, first], 1))


@pytest.mark.parametrize("how", ["chunk", "chunk by keywords", "split", "split as a function"])
def test_parts_of_unlike_widths_keep_their_boundary(how: str) -> None:
    """At the widths that ``check`` tried, halves happened to fall on the boundary (random nets 753 and 1822)."""
    x = torch.randn(2, 4)
    supernet = augmented(CutsUnevenly(how), x)
    assert grows(supernet, "left.weight")
    assert grows(supernet, "right.weight")
    names = [group.name for group in supernet.groups]
    for widths in itertools.product(*(group.choices for group in supernet.groups)):
        with supernet.augmented(dict(zip(names, widths, strict=True))):
            assert supernet(x).shape == (2, 2)
