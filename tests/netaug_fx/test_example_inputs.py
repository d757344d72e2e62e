"""Inputs for analysis: what a user may give, what a model may declare, what its first layer tells."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import netaug_fx
from netaug_fx.errors import InputError, TraceError
from netaug_fx.example_inputs import checked_model, find_example_inputs, normalise_inputs, resolve_inputs
from tests.netaug_fx.small_nets import Mlp

A, B = torch.zeros(2, 4), torch.ones(2, 4)


def shapes(inputs: Any) -> list[tuple[int, ...]]:
    args, kwargs = inputs
    return [tuple(tensor.shape) for tensor in (*args, *kwargs.values())]


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (A, (A,), {}),
        ((A, B), (A, B), {}),
        ([A, B], (A, B), {}),
        ((A, 3, None), (A, 3, None), {}),
        ({"x": A, "flag": True}, (), {"x": A, "flag": True}),
        (((A,), {"y": B}), (A,), {"y": B}),
        ((A, {"y": B}), (A, {"y": B}), {}),
        (([A, B],), ([A, B],), {}),
    ],
    ids=["tensor", "tuple", "list", "other values", "dict", "both", "a dict as argument", "a list as argument"],
)
def test_what_may_be_given(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    got_args, got_kwargs = normalise_inputs(given)
    assert isinstance(got_args, tuple)
    (got, structure), (expected, wanted) = (
        pytree.tree_flatten(each) for each in ((got_args, got_kwargs), (args, kwargs))
    )
    assert structure == wanted
    assert all(ours is theirs for ours, theirs in zip(got, expected, strict=True))


@pytest.mark.parametrize("given", ["text", 3, None, (), [], {}, {"x": 1}, ((), {})])
def test_inputs_without_tensors(given: Any) -> None:
    with pytest.raises(InputError, match="example_inputs must be a tensor, a tuple of arguments or a dict"):
        normalise_inputs(given)


def test_only_modules_pass() -> None:
    model = Mlp()
    assert checked_model(model) is model
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, not the class Mlp"):
        checked_model(Mlp)


def test_given_inputs_are_used_as_they_are() -> None:
    assert resolve_inputs(Mlp(), A)[0][0] is A
    with pytest.raises(InputError, match="example_inputs are on meta, the model on cpu"):
        resolve_inputs(Mlp(), {"x": A.to("meta")})


# -- declared ----------------------------------------------------------------------------------------------------------


@dataclass
class TimmConfig:
    input_size: tuple[int, ...]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("example_input_array", torch.zeros(7, 4), [(7, 4)]),
        ("example_input_array", (torch.zeros(7, 4),), [(7, 4)]),
        ("example_input_array", {"x": torch.zeros(7, 4)}, [(7, 4)]),
        ("example_input_shape", (4,), [(2, 4)]),
        ("example_input_shape", (9, 4), [(2, 9, 4)]),
        ("default_cfg", {"input_size": (5, 4)}, [(2, 5, 4)]),
        ("pretrained_cfg", TimmConfig((6, 4)), [(2, 6, 4)]),
        ("default_cfg", {"num_classes": 10}, [(2, 4)]),
        ("dummy_inputs", {"x": torch.zeros(3, 4)}, [(3, 4)]),
        ("example_input_array", None, [(2, 4)]),
        ("dummy_inputs", SimpleNamespace(), [(2, 4)]),
    ],
)
def test_what_a_model_may_declare(name: str, value: Any, expected: list[tuple[int, ...]]) -> None:
    model: Any = Mlp()
    setattr(model, name, value)
    assert shapes(find_example_inputs(model)) == expected
    assert netaug_fx.augment(model).groups[0].width == 8


def test_the_first_declaration_wins() -> None:
    model: Any = Mlp()
    model.dummy_inputs = {"x": torch.zeros(3, 4)}
    model.example_input_shape = (5, 4)
    assert shapes(find_example_inputs(model)) == [(2, 5, 4)]
    model.example_input_array = torch.zeros(7, 4)
    assert shapes(find_example_inputs(model)) == [(7, 4)]


def test_a_declaration_that_does_not_fit_is_not_hidden() -> None:
    model: Any = Mlp()
    model.example_input_shape = (5,)
    with pytest.raises(TraceError, match="in module 'first'"):
        netaug_fx.augment(model)


# -- guessed -----------------------------------------------------------------------------------------------------------


def conv_net(conv: Callable[..., nn.Module], pool: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(conv(3, 8, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (conv_net(nn.Conv1d, nn.AdaptiveAvgPool1d), (2, 3, 64)),
        (conv_net(nn.Conv2d, nn.AdaptiveAvgPool2d), (2, 3, 64, 64)),
        (conv_net(nn.Conv3d, nn.AdaptiveAvgPool3d), (2, 3, 16, 16, 16)),
        (nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 2)), (2, 1, 28, 28)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 2)), (2, 3, 32, 32)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)), (2, 1, 8, 8)),
        (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), (2, 5)),
        (nn.Sequential(nn.Dropout(), Mlp()), (2, 4)),
    ],
    ids=["1-D", "2-D", "3-D", "28x28", "32x32", "8x8", "linear", "nested"],
)
def test_the_first_layer_tells(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert shapes(find_example_inputs(model)) == [shape]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_have_the_models_dtype(dtype: torch.dtype) -> None:
    (found,), _ = find_example_inputs(Mlp().to(dtype))
    assert found.dtype == dtype


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)), nn.LSTM(4, 5), nn.Sequential(nn.ReLU()), nn.Bilinear(3, 4, 5)],
    ids=["embedding", "recurrent", "no weights", "two inputs"],
)
def test_models_that_tell_nothing(model: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"no example input for {type(model).__name__} could be found; give one"):
        find_example_inputs(model)


def test_the_reason_why_guesses_failed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(11, 2))
    with pytest.raises(
        InputError, match=r"could be found \(the last one tried failed with RuntimeError: .*\); give one"
    ):
        find_example_inputs(model)
    assert caplog.records == []  # a guess that fails is no error of the user's


def test_finding_leaves_no_trace() -> None:
    class Counts(Mlp):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(self.norm(x))

    model = Counts()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = find_example_inputs(model), find_example_inputs(model)
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_lazy_modules_get_their_parameters_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    inputs = torch.randn(2, 3, 6, 6)
    supernet = netaug_fx.augment(model, example_inputs=inputs)
    assert [group.width for group in supernet.groups] == [8]
    assert model.training
    assert int(model[1].num_batches_tracked) == 0, "the first run moved running statistics"
    assert torch.equal(supernet.eval()(inputs), model.eval()(inputs))
    assert netaug_fx.verify(netaug_fx.extract(supernet), model, example_inputs=inputs).passed


def test_lazy_modules_run_on_inputs_that_the_model_declares() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    model.example_input_shape = (5,)
    assert [group.width for group in netaug_fx.augment(model).groups] == [8]
