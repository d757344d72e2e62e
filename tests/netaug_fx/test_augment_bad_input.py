"""What cannot be used is refused with an error that says what was found, what was expected, and the remedy."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import CheckpointError, InputError, NetAugError, PlanError, TraceError
from tests.netaug_fx.small_nets import Mlp, evaluated

X = torch.randn(2, 4)


class Unguessable(nn.Module):
    """Nothing in it tells what it takes: its first layer is an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens))


@pytest.fixture(scope="module")
def augmented_mlp() -> Any:
    return netaug_fx.augment(Mlp())


@pytest.fixture
def mlp(augmented_mlp: Any) -> Any:
    return copy.deepcopy(augmented_mlp)


def test_every_error_has_one_base() -> None:
    for error in (InputError, TraceError, PlanError, CheckpointError):
        assert issubclass(error, NetAugError)
    assert issubclass(InputError, ValueError)


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Mlp, "the class Mlp: give an instance"),
        (None, "NoneType"),
        ("resnet18", "str"),
        (torch.relu, "builtin_function"),
    ],
)
@pytest.mark.parametrize("entry", [netaug_fx.augment, netaug_fx.inspect])
def test_a_model_that_is_not_a_module(entry: Callable[[Any], Any], model: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"model must be a torch\.nn\.Module, not {found}"):
        entry(model)


def test_a_supernet_augmented_twice(mlp: Any) -> None:
    with pytest.raises(InputError, match=r"augmented already \(it is elastic\); augment the plain model"):
        netaug_fx.augment(mlp)
    assert isinstance(netaug_fx.augment(netaug_fx.extract(mlp)), Mlp)


def test_a_supernet_inside_another_model(mlp: Any) -> None:
    with pytest.raises(InputError, match=r"augmented already \(its module '1' is elastic\)"):
        netaug_fx.augment(nn.Sequential(nn.Linear(4, 4), mlp))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules() -> None:
    scripted = torch.jit.script(Mlp())
    with pytest.raises(InputError, match=r"is scripted.*give the model before torch\.jit\.script"):
        netaug_fx.augment(scripted)
    with pytest.raises(InputError, match=r"module '1' \(RecursiveScriptModule\) is scripted"):
        netaug_fx.augment(nn.Sequential(nn.Linear(4, 4), scripted), example_inputs=X)


def test_lazy_modules_without_inputs() -> None:
    with pytest.raises(InputError, match=r"module '0' \(LazyLinear\) is lazy: give example_inputs"):
        netaug_fx.augment(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)))


def test_lazy_modules_whose_inputs_do_not_fit_stay_as_they_are() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(9, 2))
    with pytest.raises(InputError, match=r"'0' \(LazyLinear\) is lazy, and the model does not run.*shapes"):
        netaug_fx.augment(model, example_inputs=X)
    assert isinstance(model[0], nn.LazyLinear)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_quantised_modules() -> None:
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    if not engines:
        pytest.skip("this build of torch has no quantised kernels")
    quantised = torch.ao.quantization.quantize_dynamic(Mlp(), {nn.Linear})
    with pytest.raises(InputError, match=r"module 'first' \(Linear\) is quantised: augment the float model"):
        netaug_fx.augment(quantised)


def test_a_model_on_the_meta_device() -> None:
    with pytest.raises(InputError, match=r"module 'first' \(Linear\) is on the meta device: give it values"):
        netaug_fx.augment(Mlp().to("meta"))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(4, 3), "dimension of the model's output"),
        (nn.Sequential(nn.ReLU()), "it has no weights"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), "dimension of the model's input"),
    ],
)
def test_nothing_widenable(model: nn.Module, reason: str) -> None:
    with pytest.raises(PlanError, match=rf"nothing in this model can be widened.*{reason}.*netaug_fx\.inspect"):
        netaug_fx.augment(model, example_inputs=X)


# -- the example input -------------------------------------------------------------------------------------------------


def test_no_example_input_to_be_found() -> None:
    with pytest.raises(InputError, match=r"no example input for Unguessable could be found.*give one: example_inputs="):
        netaug_fx.augment(Unguessable())
    assert netaug_fx.augment(Unguessable(), example_inputs=torch.tensor([[1, 2]])).groups[0].width == 8


def test_guesses_that_fail_are_told() -> None:
    class Odd(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(7, 4))

    with pytest.raises(InputError, match=r"no example input for Odd could be found \(the last one tried failed with"):
        netaug_fx.augment(Odd())


@pytest.mark.parametrize("nothing", ["x", 3, [], {}, (None,), {"x": "a"}])
def test_an_example_input_without_tensors(nothing: Any) -> None:
    with pytest.raises(InputError, match="example_inputs must be a tensor, a tuple of arguments or a dict"):
        netaug_fx.augment(Mlp(), example_inputs=nothing)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.randn(2, 5), r"in module 'first', RuntimeError.*5"),
        (torch.ones(2, 4, dtype=torch.int64), "RuntimeError.*dtype"),
        (X.double(), "RuntimeError.*dtype"),
        ((X, X), "TypeError.*positional arguments"),
        ({"images": X}, "TypeError.*images"),
    ],
    ids=["shape", "integers", "double", "too many", "unknown name"],
)
def test_an_example_input_that_does_not_fit(inputs: Any, found: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TraceError, match=rf"does not run on the example inputs.*{found}[\s\S]*Check the shape, dtype"):
        netaug_fx.augment(Mlp(), example_inputs=inputs)
    assert caplog.records == []  # the exception says it all


def test_an_example_input_on_another_device() -> None:
    with pytest.raises(InputError, match=r"example_inputs are on meta, the model on cpu: move them with \.to\('cpu'\)"):
        netaug_fx.augment(Mlp(), example_inputs=X.to("meta"))


# -- ratio, pin, divisor, seed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.5, r"ratio must be finite and at least 1, not 0\.5"),
        (-3, "ratio must be finite and at least 1, not -3"),
        (float("nan"), "ratio must be finite and at least 1, not nan"),
        (float("inf"), "ratio must be finite and at least 1, not inf"),
        (True, "ratio must be finite and at least 1, not True"),
        ("3", "ratio must be a number or a list of numbers, not '3'"),
        (None, "ratio must be a number or a list of numbers, not None"),
        ([], r"ratio must be a number or a list of numbers, not \[\]"),
        ([1, 0.5], r"ratio must be finite and at least 1, not 0\.5"),
        ([1, "2"], "ratio must be finite and at least 1, not '2'"),
        ({"outer": 2}, "ratio has the unknown kind 'outer'; the kinds are stream and inner"),
        ({"inner": 0.5}, r"ratio\['inner'\] must be finite and at least 1, not 0\.5"),
        (lambda group: 0.2, r"ratio\('first'\) must be finite and at least 1, not 0\.2"),
        (lambda group: None, r"ratio\('first'\) must be a number or a list of numbers, not None"),
    ],
)
def test_ratios(ratio: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        netaug_fx.augment(Mlp(), ratio, example_inputs=X)


@pytest.mark.parametrize("ratio", [1, [1.0], 1.01, {}, {"inner": 3}])
def test_ratios_that_leave_everything(ratio: Any) -> None:
    with pytest.raises(PlanError, match=r"the ratio leaves the stream group 'first' as it is.*loosen ratio"):
        netaug_fx.augment(Mlp(), ratio, example_inputs=X)


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        ("first", r"pin must be a list of module-path globs, such as pin=\['first'\]"),
        (["head.*"], r"pin='head\.\*' matches no module; paths look like 'first', 'last'"),
        (["first", "First"], "pin='First' matches no module"),
        ([""], "pin='' matches no module"),
        ([3], r"pin must be a list of module-path globs \(strings\), not \[3\]"),
        (None, r"pin must be a list of module-path globs \(strings\), not None"),
    ],
)
def test_pins(pin: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        netaug_fx.augment(Mlp(), pin=pin, example_inputs=X)


def test_everything_pinned() -> None:
    with pytest.raises(PlanError, match=r"pinned by pin='\*'.*loosen ratio or pin"):
        netaug_fx.augment(Mlp(), pin=["*"], example_inputs=X)


@pytest.mark.parametrize("divisor", [0, -1, 1.5, True, "8", None])
def test_divisors(divisor: Any) -> None:
    with pytest.raises(InputError, match=f"divisor must be an integer of at least 1, not {divisor!r}"):
        netaug_fx.augment(Mlp(), divisor=divisor, example_inputs=X)


@pytest.mark.parametrize("seed", [1.5, "x", None, True, 2**63])
def test_seeds(seed: Any) -> None:
    with pytest.raises(InputError, match=f"seed must be an integer of 64 bits, not {seed!r}"):
        netaug_fx.augment(Mlp(), seed=seed, example_inputs=X)


# -- what takes a supernet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [Mlp(), None, Mlp])
@pytest.mark.parametrize(
    "use",
    [netaug_fx.extract, netaug_fx.sort_channels_, lambda model: netaug_fx.calibrate_(model, [X])],
    ids=["extract", "sort_channels_", "calibrate_"],
)
def test_a_plain_model_where_a_supernet_is_needed(use: Callable[[Any], Any], plain: Any) -> None:
    with pytest.raises(InputError, match=rf"{type(plain).__name__} is not a supernet: give what netaug_fx\.augment"):
        use(plain)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"first": 7}, r"widths\['first'\] must be an integer from 8 to 24, not 7"),
        ({"first": 25}, "must be an integer from 8 to 24, not 25"),
        ({"first": 8.0}, r"must be an integer from 8 to 24, not 8\.0"),
        ({"first": True}, "must be an integer from 8 to 24, not True"),
        ({"first": "8"}, "must be an integer from 8 to 24, not '8'"),
        ({"first": None}, "must be an integer from 8 to 24, not None"),
        ({"frist": 8}, "unknown group 'frist'; the groups are first"),
        ([8], r"widths must be a mapping from group name to width, not \[8\]"),
    ],
)
def test_widths(mlp: Any, widths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message), mlp.augmented(widths):
        pass
    assert mlp.widths == {"first": 8}


@pytest.mark.parametrize("kinds", ["inner", {"outer"}, [3], 3])
def test_kinds(mlp: Any, kinds: Any) -> None:
    with pytest.raises(InputError, match="kinds must be a collection of 'stream' and 'inner', not"):
        mlp.sample(kinds)
    with pytest.raises(InputError, match="kinds must be a collection of 'stream' and 'inner', not"):
        netaug_fx.sort_channels_(mlp, kinds=kinds)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_model(mlp: Any) -> None:
    before = evaluated(mlp, X)
    with pytest.raises(RuntimeError, match=r"for Mlp[\s\S]*Missing[\s\S]*first\.weight[\s\S]*Unexpected"):
        mlp.load_state_dict(nn.Linear(4, 2).state_dict())
    assert torch.equal(evaluated(mlp, X), before)


def test_a_checkpoint_of_a_supernet_of_another_ratio(mlp: Any) -> None:
    other = netaug_fx.augment(Mlp(), ratio=2, example_inputs=X)
    with pytest.raises(RuntimeError, match=r"size mismatch for first\.weight_netaug0"):
        mlp.load_state_dict(other.state_dict())


def test_a_checkpoint_that_lacks_one_extra_block(mlp: Any) -> None:
    state = mlp.state_dict()
    del state["last.weight_netaug1"]
    with pytest.raises(RuntimeError, match=r"Missing key.*last\.weight_netaug1"):
        mlp.load_state_dict(state)


@pytest.mark.parametrize("draws", [torch.zeros(3, dtype=torch.int64), torch.tensor([0.5, float("nan")]), "x"], ids=str)
def test_a_checkpoint_with_wrong_draws(mlp: Any, draws: Any) -> None:
    mlp.sample()
    expected = copy.deepcopy(mlp).sample()
    with pytest.raises(CheckpointError, match=r"netaug\.draws must be a tensor of two integers \(seed and draws\)"):
        mlp.load_state_dict({**mlp.state_dict(), "netaug.draws": draws})
    assert mlp.sample() == expected
