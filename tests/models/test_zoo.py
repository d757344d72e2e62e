"""The zoo against the published counts, and what every net in it must be able to do."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from netaug_fx import models
from netaug_fx.errors import InputError
from netaug_fx.models.blocks import SqueezeExcite
from netaug_fx.models.ghostnet import GhostModule

# name, resolution, MACs in millions (recomputed from the published definitions), parameters in millions
TARGETS = [
    ("mobilenet_v2_tiny", 144, 23.499, 0.750),
    ("mobilenet_v2_035", 160, 30.875, 1.677),
    ("mobilenet_v3_035", 160, 19.50, 2.110),
    ("proxylessnas_035", 160, 35.717, 1.781),
    ("mcunet", 176, 81.786, 0.737),
]
RESNETS = [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
# He et al., arXiv 1512.03385, table 6, rounds to 0.27M and 0.85M without the weights of strided shortcuts.
SMALL_RESNETS = [("resnet20", 272_474, 40_813_184), ("resnet56", 855_770, 125_747_840)]
# Bases to be enlarged. Tan and Le, arXiv 1905.11946, table 2: 0.39B and 5.3M; Han et al., arXiv 1911.11907: 141M, 5.2M.
BASES = [("ghostnet", 5_182_508, 141_150_512), ("efficientnet_b0", 5_288_548, 385_814_752)]
NAMES = models.names()


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module) -> float:
    """MACs of convolutions and linear layers for one image of the size the net was designed for."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example(model, batch=1))
    return counter.get_total_flops() / 2


def example(model: nn.Module, batch: int = 2, size: int | None = None) -> Tensor:
    channels, height, width = model.example_input_shape
    shape = (batch, channels, size or height, size or width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A net and a batch that is quick to run and leaves every norm more than one value per channel."""
    torch.manual_seed(0)
    model = models.create(name, num_classes=7, in_channels=1)
    return model, example(model, batch=4, size=8 if name == "digits_net" else 64)


def test_the_registry_holds_the_zoo_and_nothing_else() -> None:
    others = [*RESNETS, *SMALL_RESNETS, *BASES]
    expected = {name for name, *_ in TARGETS} | {name for name, *_ in others} | {"digits_net", "scenes_net"}
    assert set(NAMES) == expected
    assert expected <= set(models.__all__)


@pytest.mark.parametrize(("name", "resolution", "macs", "parameters"), TARGETS)
def test_targets_have_the_published_counts(name: str, resolution: int, macs: float, parameters: float) -> None:
    model = models.create(name)
    assert model.example_input_shape == (3, resolution, resolution)
    assert count_macs(model) == pytest.approx(macs * 1e6, rel=1e-3)
    assert round(count_parameters(model) / 1e6, 3) == parameters


@pytest.mark.parametrize(("name", "parameters"), RESNETS)
def test_resnets_have_the_well_known_parameter_counts(name: str, parameters: int) -> None:
    model = models.create(name)
    assert model.example_input_shape == (3, 224, 224)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(("name", "parameters", "macs"), SMALL_RESNETS)
def test_resnets_for_small_images_have_their_counts(name: str, parameters: int, macs: int) -> None:
    model = models.create(name)
    assert model.example_input_shape == (3, 32, 32)
    assert count_parameters(model) == parameters
    assert count_macs(model) == macs


@pytest.mark.parametrize(("name", "parameters", "macs"), BASES)
def test_bases_to_be_enlarged_have_the_published_counts(name: str, parameters: int, macs: int) -> None:
    model = models.create(name)
    assert model.example_input_shape == (3, 224, 224)
    assert count_parameters(model) == parameters
    assert count_macs(model) == macs


def test_gates_of_the_bases_have_the_hidden_widths_of_their_papers() -> None:
    gates = {
        name: [m.reduce.out_channels for m in models.create(name).modules() if isinstance(m, SqueezeExcite)]
        for name in ("ghostnet", "efficientnet_b0")
    }
    assert gates["ghostnet"] == [20, 32, 120, 168, 168, 240, 240]
    assert gates["efficientnet_b0"] == [8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48]


def test_half_of_a_ghost_modules_channels_are_filters_on_the_other_half() -> None:
    module = GhostModule(6, 8, activation=False).eval()
    x = torch.randn(2, 6, 5, 5)
    y = module(x)
    assert y.shape == (2, 8, 5, 5)
    assert torch.equal(y[:, 4:], module.cheap(y[:, :4]))
    assert torch.equal(y[:, :4], module.primary(x))


def test_depths_that_three_stages_cannot_have_are_refused() -> None:
    assert sum(isinstance(module, nn.Conv2d) for module in models.ResNetCifar(32).modules()) == 31 + 2
    with pytest.raises(InputError, match=r"depth must be 6n \+ 2 .* not 21"):
        models.ResNetCifar(21)


def test_resnet18_has_the_macs_known_from_its_definition() -> None:
    # Knowledge Evolution's dense net: 102 classes at 224.
    assert count_macs(models.resnet18(num_classes=102)) == pytest.approx(1.814e9, rel=1e-3)


def test_resnet_modules_are_named_as_in_the_common_checkpoints() -> None:
    keys = set(models.resnet50().state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.0.weight",
        "layer4.2.bn3.bias",
        "fc.weight",
    } <= keys
    assert len(keys) == 320  # 53 convolutions, 53 norms of five tensors each, weight and bias of the classifier


def test_scenes_net_is_small_and_is_made_for_grey_scenes() -> None:
    model = models.scenes_net()
    assert model.example_input_shape == (1, 96, 96)
    assert count_parameters(model) == 26_598
    assert count_macs(model) == 2_162_496
    assert model(example(model)).shape == (2, 62)


def test_digits_net_is_very_small_and_is_made_for_digits() -> None:
    model = models.digits_net()
    assert model.example_input_shape == (1, 8, 8)
    assert 3_000 <= count_parameters(model) <= 10_000
    assert model(example(model)).shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
def test_forward_at_two_resolutions_with_other_channels_and_classes(name: str) -> None:
    model, x = small(name)
    model.eval()
    assert model.example_input_shape[0] == 1
    with torch.no_grad():
        for batch in (x, nn.functional.pad(x, (0, 8, 0, 8))):
            logits = model(batch)
            assert logits.shape == (4, 7)
            assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_input_is_left_as_it_was(name: str) -> None:
    model, x = small(name)
    before = x.clone()
    model(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name: str) -> None:
    model, x = small(name)
    model(x)  # running statistics away from their start
    torch.manual_seed(1)
    other = models.create(name, num_classes=7, in_channels=1)
    assert not torch.equal(model.eval()(x), other.eval()(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("name", NAMES)
def test_fx_traces_every_net_and_every_module_in_it(name: str) -> None:
    model, x = small(name)
    model.eval()
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    for path, module in model.named_modules():
        if any(True for _ in module.children()):
            assert len(fx.symbolic_trace(module).graph.nodes) > 2, path


@pytest.mark.parametrize("name", NAMES)
def test_backward_gives_every_parameter_a_finite_gradient(name: str) -> None:
    model, x = small(name)
    nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 3, 6, 1])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert any(parameter.grad.abs().max() > 0 for parameter in next(model.children()).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only_and_keeps_the_keys(name: str) -> None:
    plain, x = small(name)
    dropping = models.create(name, num_classes=7, in_channels=1, dropout=0.5)
    assert [m.p for m in dropping.modules() if isinstance(m, nn.Dropout)] == [0.5]
    assert not any(isinstance(m, nn.Dropout) for m in plain.modules())
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(dropping.eval()(x), plain.eval()(x))
    assert not torch.equal(dropping.train()(x), plain.train()(x))


@pytest.mark.parametrize("name", NAMES)
def test_deepcopy_is_independent(name: str) -> None:
    model, x = small(name)
    twin = copy.deepcopy(model.eval())
    assert torch.equal(model(x), twin(x))
    assert twin.example_input_shape == model.example_input_shape
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("num_classes", 2.0),
        ("num_classes", True),
        ("in_channels", 0),
        ("in_channels", "3"),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("dropout", "0.1"),
    ],
)
def test_bad_arguments_are_refused_by_name(name: str, argument: str, value: object) -> None:
    with pytest.raises(InputError, match=argument):
        models.create(name, **{argument: value})


@pytest.mark.parametrize("name", [name for name, *_ in TARGETS])
def test_the_stream_and_the_shortcuts_are_where_the_papers_have_them(name: str) -> None:
    """A block adds its input exactly when its stage goes on: same width, stride 1, not the first of its stage."""
    shortcuts = {
        "mobilenet_v2_tiny": "0 01 011 0111 011 011 0",
        "mobilenet_v2_035": "0 01 011 0111 011 011 0",
        "mobilenet_v3_035": "1 01 011 0111 01 011",
        "proxylessnas_035": "0 01 0111 0111 0111 0111 0",
        "mcunet": "0 0111 011 011 011 011 0",
    }
    model = models.create(name)
    found = "".join(str(int(block.shortcut)) for block in model.blocks)
    assert found == shortcuts[name].replace(" ", "")


def test_last_blocks_of_the_searched_nets_have_a_7x7_depthwise_convolution() -> None:
    last = {name: models.create(name).blocks[-1].body.depthwise.conv for name in ("proxylessnas_035", "mcunet")}
    assert {name: conv.kernel_size for name, conv in last.items()} == {"proxylessnas_035": (7, 7), "mcunet": (7, 7)}
    assert last["mcunet"].out_channels == 480
    assert models.mcunet().classifier.in_features == 160
