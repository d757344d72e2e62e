"""Nets that generations begin with, and what becomes of those that they end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import netaug_fx
from netaug_fx.cli import main
from netaug_fx.errors import InputError
from netaug_fx.training import evolve_run
from netaug_fx.training.arm import plain_net
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import EvolveConfig, TrainConfig
from tests.netaug_fx.training_runs import changed, without_seconds

# A forward that holds widths in its text: its slim net is of a class of its own.
SHUFFLING = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels, late):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.classifier, self.late = nn.Linear(8, classes), late

    def forward(self, x):
        x = self.a(x).relu()
        x = x.view(-1, 2, 4, 3, 3).transpose(1, 2).reshape(-1, 8, 3, 3)
        x = self.b(x).relu().flatten(1)
        return nn.functional.linear(x, self.classifier.weight) if self.late else self.classifier(x)

def make(num_classes=10, in_channels=1):
    return Net(num_classes, in_channels, late=False)

def functional(num_classes=10, in_channels=1):
    return Net(num_classes, in_channels, late=True)

def trained(num_classes=10, in_channels=1, pretrained=False):
    net = make(num_classes, in_channels)
    if pretrained:
        nn.init.constant_(net.a.weight, 7.0)
    return net
"""


@pytest.fixture
def shuffling(tmp_path: Path) -> Path:
    (tmp_path / "shuffling.py").write_text(SHUFFLING)
    return tmp_path / "shuffling.py"


def run_verb(*words: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code in (0, None)


def test_a_slim_net_is_started_from_with_its_weights(
    evolved: Path, evolve_config: EvolveConfig, config: TrainConfig
) -> None:
    weights = evolved / "slim.safetensors"
    task = evolve_run.prepare(evolve_config)
    tensors, _ = load_weights(weights)
    net = plain_net(changed(config, model__weights=str(weights)), task)
    assert all(torch.equal(value, tensors[name]) for name, value in net.state_dict().items())
    again: Any = evolve_run.split_net(changed(evolve_config, model__weights=str(weights)), task)
    assert all(group.width < own for group, own in zip(again.groups, (2, 4, 3), strict=True))


def test_a_slim_net_is_fine_tuned_and_evolved_further_and_what_comes_of_it_verified(
    shuffling: Path, evolve_config: EvolveConfig, tmp_path: Path
) -> None:
    short = {"evolve__generations": 1, "optim__epochs": 1, "optim__warmup_epochs": 0.0, "evolve__control": False}
    first = evolve_run.start(changed(evolve_config, model__name=f"{shuffling}:make", **short), tmp_path / "first")
    costs = without_seconds(first)["macs"]
    settings = tmp_path / "settings.yaml"
    settings.write_text("optim: {epochs: 1}\nnetaug: {ratio: 2}\ndata: {batch_size: 128}\n")
    words = ["--data", "digits", "--config", settings, "--arms", "netaug"]
    run_verb("finetune", first, *words, "--out", tmp_path / "tuned")
    tuned = without_seconds(tmp_path / "tuned")
    assert tuned["macs"]["tiny"] == costs["slim"]
    assert tuned["verification"]["passed"]
    run_verb("verify", tmp_path / "tuned" / "tiny.safetensors")
    tiny = {"model__name": f"{shuffling}:make", "model__weights": str(tmp_path / "tuned" / "tiny.safetensors")}
    further = changed(evolve_config, **tiny, **(short | {"evolve__generations": 2}))
    second = evolve_run.start(further, tmp_path / "second")
    assert without_seconds(second)["macs"]["dense"] == costs["slim"]
    assert without_seconds(second)["macs"]["slim"]["params"] < costs["slim"]["params"]
    for name in ("dense", "slim"):
        run_verb("verify", second / f"{name}.safetensors")


def test_weights_that_a_builder_loads_are_not_what_is_drawn(shuffling: Path, evolve_config: EvolveConfig) -> None:
    settings = changed(evolve_config, model__name=f"{shuffling}:trained", model__kwargs={"pretrained": True})
    task = evolve_run.prepare(settings)
    supernet: Any = evolve_run.split_net(settings, task)
    assert (supernet.a.weight == 7).all()
    evolution = evolve_run._Evolution(settings, task, Path(), None)
    netaug_fx.reset_(supernet, initialise=evolution._initialise)
    dense: Any = netaug_fx.extract(supernet, dense=True)
    assert (supernet.a.weight == 7).all()
    assert (dense.a.weight == 7).double().mean() == 0.5


def test_triplets_need_a_classifier_that_is_called(shuffling: Path, evolve_config: EvolveConfig) -> None:
    settings = changed(evolve_config, model__name=f"{shuffling}:functional", evolve__loss="triplet")
    with pytest.raises(
        InputError, match=r"triplet \(--loss\).*'classifier' of .*functional is not called in its forward"
    ):
        evolve_run.prepare(settings)
    assert len(evolve_run.prepare(changed(settings, model__name=f"{shuffling}:make")).classes) == 10
