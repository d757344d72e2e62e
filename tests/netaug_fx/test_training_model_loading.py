"""From a name to a net: the zoo, timm, a user's file, and what is wrong with names that lead nowhere."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from netaug_fx import models
from netaug_fx.errors import InputError
from netaug_fx.training.model_loading import check_outputs, load_model, natural_input_shape

FILE = """
from torch import nn
import helper_of_the_net

def make_net(num_classes, width=4):
    return nn.Linear(width, num_classes + helper_of_the_net.MORE)

def any_arguments(**kwargs):
    return nn.Linear(len(kwargs), 1)

def needs_depth(depth):
    return nn.Linear(depth, 1)

def no_net():
    return 3

made = nn.Linear(2, 2)

def the_same():
    return made

def fails():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_the_net.py").write_text("MORE = 0\n")
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_a_zoo_name_gives_the_zoo_net() -> None:
    net = load_model("digits_net", num_classes=7, in_channels=3)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert natural_input_shape(net) == (3, 8, 8)
    assert set(models.names()) >= {"digits_net", "mobilenet_v2_tiny", "resnet18"}


def test_a_function_gets_the_arguments_it_has_parameters_for(file: Path) -> None:
    net = load_model(f"{file}:make_net", num_classes=5, in_channels=3, kwargs={"width": 6})
    assert isinstance(net, nn.Linear)
    assert (net.in_features, net.out_features) == (6, 5)
    assert natural_input_shape(net) is None
    takes_all: Any = load_model(f"{file}:any_arguments", num_classes=5, in_channels=3)
    assert takes_all.in_features == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit_net", "Did you mean 'digits_net'"),
        ("{file}:make_nett", "no function 'make_nett'. Did you mean make_net"),
        ("{file}:no_net", "gives a int; expected a torch.nn.Module"),
        ("{file}:made", "made is a model; give a function"),
        ("{file}:needs_depth", "cannot be called.*'depth'.*model.kwargs"),
        ("{file}:fails", r"mine\.py:fails fails: RuntimeError: no luck\. \(--debug"),
        ("{file}", "add the function that builds the net"),
        ("{file}x.py:make", "there is no file"),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(file: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_model(name.format(file=file), num_classes=5, in_channels=3)


def test_what_a_function_needs_is_said_with_its_options(file: Path) -> None:
    with pytest.raises(InputError, match=r"'num_classes'.*--num-classes and --in-channels are given"):
        load_model(f"{file}:make_net")


def test_a_function_that_gives_one_net_twice_is_refused(file: Path) -> None:
    """Both arms of a run would train it, the second from where the first ended."""
    load_model(f"{file}:the_same")
    with pytest.raises(InputError, match="the_same gives the same module each time it is called; make a new one"):
        load_model(f"{file}:the_same")


def test_a_file_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(InputError, match=r"broken\.py cannot be imported: ModuleNotFoundError.*nothing_of_that_name"):
        load_model(f"{tmp_path / 'broken.py'}:make")


def test_timm_names_are_looked_up_in_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    timm: Any = ModuleType("timm")

    def create_model(name: str, num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
        net = nn.Linear(in_chans, num_classes)
        net.default_cfg = {"input_size": (in_chans, 160, 160)}  # type: ignore[assignment]
        return net

    timm.list_models = lambda: ["mobilenetv2_100", "resnet18"]
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    net: Any = load_model("timm:resnet18", num_classes=4, in_channels=1)
    assert (net.in_features, net.out_features) == (1, 4)
    assert natural_input_shape(net) == (1, 160, 160)
    with pytest.raises(InputError, match=r"no model 'resnet81'\. Did you mean resnet18"):
        load_model("timm:resnet81")
    with pytest.raises(InputError, match=r"does not take these arguments.*depth"):
        load_model("timm:resnet18", kwargs={"depth": 3})


def test_a_timm_that_cannot_be_imported_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(InputError, match=r"cannot be imported .*nms does not exist.*install a torchvision that fits"):
        load_model("timm:resnet18")


def test_without_timm_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="pip install timm"):
        load_model("timm:resnet18")


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class WithAuxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classifier = nn.BatchNorm2d(3), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.classifier(self.norm(x).flatten(1))
        return (logits, logits) if self.training else logits


def test_outputs_in_training_mode_are_looked_at_without_a_trace() -> None:
    net, before = WithAuxiliary(), torch.get_rng_state()
    with pytest.raises(InputError, match=r"mine returns a tuple in training mode.*auxiliary classifiers"):
        check_outputs(net, torch.ones(2, 3, 2, 2), 5, "mine")
    assert int(net.norm.num_batches_tracked or 0) == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Flatten(), r"output of shape \[2, 12\] for 2 images; the data has 5 classes"),
        (TwoOutputs(), "returns a tuple; expected one tensor"),
        (nn.Linear(7, 5), r"cannot take images of shape \[2, 3, 2, 2\].*--image-size"),
    ],
)
def test_a_net_whose_output_does_not_fit_the_classes_is_refused(net: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_outputs(net, torch.zeros(2, 3, 2, 2), 5, "mine")
    assert net.training
