"""Nets that were once handled wrongly, each named after what broke: state, norms, and values in tensors."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaug_fx
from netaug_fx.passes.infer import infer
from netaug_fx.passes.macs import count
from netaug_fx.supernet import control
from tests import invariants
from tests.holding import augmented, grows, reasons


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
