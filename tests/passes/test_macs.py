"""MACs against figures computed by hand, and the model left as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netaug_fx.errors import InputError, TraceError
from netaug_fx.passes.macs import count


class Apply(nn.Module):
    """A forward given as a function, with a parameter so that there is something to count."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape)


# (name, model, inputs, MACs by hand)
CASES: list[tuple[str, nn.Module, tuple[Tensor, ...], int]] = [
    ("conv", nn.Conv2d(3, 8, 3, stride=2, padding=1), (rand(1, 3, 8, 8),), 4 * 4 * 8 * 3 * 9),
    ("batch of two", nn.Conv2d(3, 8, 3, padding=1), (rand(2, 3, 8, 8),), 2 * 64 * 8 * 3 * 9),
    ("unbatched", nn.Conv2d(3, 8, 3, padding=1), (rand(3, 8, 8),), 64 * 8 * 3 * 9),
    ("grouped", nn.Conv2d(8, 12, 3, groups=4), (rand(1, 8, 5, 5),), 9 * 12 * 2 * 9),
    ("depthwise", nn.Conv2d(8, 8, 5, groups=8), (rand(1, 8, 5, 5),), 8 * 25),
    ("dilated", nn.Conv2d(2, 4, 3, dilation=2), (rand(1, 2, 7, 7),), 9 * 4 * 2 * 9),
    # A transposed convolution multiplies every input pixel with every kernel element of its group.
    ("transposed", nn.ConvTranspose2d(6, 4, 3, stride=2), (rand(1, 6, 5, 5),), 25 * 6 * 4 * 9),
    ("transposed, grouped", nn.ConvTranspose2d(6, 4, 3, 2, groups=2), (rand(1, 6, 5, 5),), 25 * 6 * 2 * 9),
    ("1-D", nn.Conv1d(3, 8, 3), (rand(1, 3, 10),), 8 * 8 * 3 * 3),
    ("3-D", nn.Conv3d(2, 4, 3), (rand(1, 2, 4, 5, 6),), 2 * 3 * 4 * 4 * 2 * 27),
    ("linear", nn.Linear(5, 7), (rand(1, 5),), 35),
    ("linear on tokens", nn.Linear(5, 7, bias=False), (rand(2, 3, 5),), 2 * 3 * 35),
    ("linear on a vector", nn.Linear(5, 7), (rand(5),), 35),
    ("matmul", Apply(torch.matmul), (rand(2, 3, 4), rand(2, 4, 5)), 2 * 3 * 4 * 5),
    ("matmul, left broadcast", Apply(torch.matmul), (rand(3, 4), rand(6, 4, 5)), 6 * 3 * 4 * 5),
    ("matmul, right broadcast", Apply(torch.matmul), (rand(6, 3, 4), rand(4, 5)), 6 * 3 * 4 * 5),
    ("matrix with vector", Apply(torch.matmul), (rand(3, 4), rand(4)), 12),
    ("baddbmm", Apply(torch.baddbmm), (rand(1, 1, 5), rand(2, 3, 4), rand(2, 4, 5)), 2 * 3 * 4 * 5),
    ("addmm", Apply(torch.addmm), (rand(5), rand(3, 4), rand(4, 5)), 60),
    ("einsum", Apply(lambda a, b: torch.einsum("bhqd,bhkd->bhqk", a, b)), (rand(2, 3, 4, 5), rand(2, 3, 6, 5)), 720),
    ("einsum, ellipsis", Apply(lambda a, b: torch.einsum("...i,oi->...o", a, b)), (rand(2, 3, 4), rand(5, 4)), 120),
    ("einsum of three", Apply(lambda *t: torch.einsum("ab,bc,cd->ad", *t)), (rand(2, 3), rand(3, 4), rand(4, 5)), 64),
    ("attention", Apply(F.scaled_dot_product_attention), (rand(2, 4, 5), rand(2, 6, 5), rand(2, 6, 7)), 48 * 12),
    ("padding by name", nn.Conv2d(3, 4, 3, padding="same"), (rand(2, 3, 8, 8),), 2 * 64 * 4 * 3 * 9),
    ("padding by name, grouped", nn.Conv1d(4, 8, 3, padding="valid", groups=2), (rand(1, 4, 9),), 7 * 8 * 2 * 3),
    ("tensordot", Apply(lambda a, b: torch.tensordot(a, b, ([2, 1], [0, 1]))), (rand(2, 3, 4), rand(4, 3, 5)), 120),
    ("chain, cheapest order", Apply(lambda *t: torch.linalg.multi_dot(t)), (rand(9, 2), rand(2, 7), rand(7, 3)), 96),
    ("chain from a vector", Apply(lambda *t: torch.linalg.multi_dot(t)), (rand(2), rand(2, 7), rand(7, 3)), 35),
    ("LSTM", nn.LSTM(5, 7, num_layers=2, batch_first=True), (rand(2, 3, 5),), 6 * 4 * 7 * (5 + 7 + 7 + 7)),
    ("GRU", nn.GRU(5, 7, bidirectional=True), (rand(3, 2, 5),), 6 * 3 * 7 * (5 + 7) * 2),
]  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_macs_by_hand(model: nn.Module, inputs: tuple[Tensor, ...], expected: int) -> None:
    counted = count(model, inputs)
    assert counted.macs == expected
    assert sum(counted.by_op.values()) == expected
    assert counted.by_module[""] == expected
    assert counted.left_out == {}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [case[1:3] for case in CASES if case[0] != "matrix with vector"],  # torch's counter knows no aten::mv
    ids=[case[0] for case in CASES if case[0] != "matrix with vector"],
)
def test_torchs_counter_agrees(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    counted = count(model, inputs)
    assert counted.torch_macs == counted.macs


def attention_by_hand(batch: int, tokens: int, width: int) -> int:
    projections = 4 * tokens * width * width
    return batch * (projections + 2 * tokens * tokens * width)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_off_its_fast_path(need_weights: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=need_weights)[0]

    model = Attend().eval()
    before = torch.backends.mha.get_fastpath_enabled()
    counted = count(model, rand(2, 5, 12))
    assert counted.macs == counted.torch_macs == attention_by_hand(2, 5, 12)
    assert torch.backends.mha.get_fastpath_enabled() is before


def test_transformer_encoder_layer() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True).eval()
    counted = count(layer, rand(2, 5, 12))
    assert counted.macs == counted.torch_macs == attention_by_hand(2, 5, 12) + 2 * 5 * 2 * 12 * 24


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.pool(torch.sigmoid(self.norm(self.conv(x)))).flatten(1)
        return {"logits": self.again(self.shared(y)), "nested": (y, None, 3)}


CONV, NORM = 36 * 8 * 27, 2 * 36 * 8


def test_norms_are_apart_and_said() -> None:
    plain, with_norms = count(ConvNet(), rand(1, 3, 8, 8)), count(ConvNet(), rand(1, 3, 8, 8), norms=True)
    assert plain.macs == plain.torch_macs == CONV + 128
    assert plain.left_out["batch_norm"] == NORM
    assert "norms, biases" in plain.includes
    assert "x (1, 3, 8, 8)" in plain.includes
    assert with_norms.macs == CONV + 128 + NORM
    assert "operations of norms" in with_norms.includes
    assert plain.left_out["adaptive_avg_pool2d"] > 0


def test_by_module_params_and_uncounted() -> None:
    counted = count(ConvNet(), rand(1, 3, 8, 8))
    assert counted.by_module == {"": CONV + 128, "conv": CONV, "norm": 0, "pool": 0, "shared": 128}
    assert counted.by_op == {"conv": CONV, "linear": 128}
    assert counted.params == 3 * 8 * 9 + 8 + 16 + 72
    assert counted.uncounted == {"sigmoid": 1}
    assert counted.to_dict()["macs"] == counted.macs


class Caching(nn.Module):
    """Everything a forward can do to its module: count calls, cache a tensor, draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = self.norm(self.fc(x))
        return self.dropout(self.cache) + torch.rand(())


def test_the_model_is_left_as_it_was(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    model = Caching().train()
    model.norm.eval()
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    inputs, random_state = rand(2, 4), torch.get_rng_state()
    with caplog.at_level(logging.DEBUG, logger="fvcore"):
        assert count(model, inputs).macs == 32
    assert model.training
    assert model.dropout.training
    assert not model.norm.training
    assert model.cache is None
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(6, 2)

    def forward(self, left: Tensor, right: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return self.a(left) + self.b(right["x"]) * scale


@pytest.mark.parametrize(
    "inputs",
    [(rand(1, 4), {"x": rand(1, 6)}), {"left": rand(1, 4), "right": {"x": rand(1, 6)}, "scale": 2.0}],
    ids=["tuple", "dict"],
)
def test_inputs_as_arguments_or_keywords(inputs: Any) -> None:
    assert count(TwoInputs(), inputs).macs == 20


def test_an_input_that_is_looked_for_has_a_batch_of_one() -> None:
    assert count(nn.Linear(4, 3)).macs == 12


def test_a_wrong_input_is_named() -> None:
    with pytest.raises(TraceError, match=r"Linear does not run on the example inputs.*pass example_inputs"):
        count(nn.Linear(4, 2), rand(1, 5))
    with pytest.raises(InputError, match="example_inputs"):
        count(nn.Linear(4, 2), (3,))
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module"):
        count("model", rand(1, 5))  # type: ignore[arg-type]
