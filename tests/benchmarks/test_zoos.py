"""The zoos: every net that is listed builds, and runs in both modes on the inputs it is listed with."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.zoos import Net, timm_nets, torchvision_nets, transformers_nets

TORCHVISION_SAMPLE = {
    "squeezenet1_1": "squeezenet",
    "shufflenet_v2_x0_5": "shufflenetv2",
    "lraspp_mobilenet_v3_large": "segmentation",
    "r3d_18": "video",
    "raft_small": "optical_flow",
    "ssdlite320_mobilenet_v3_large/backbone": "detection",
    "ssdlite320_mobilenet_v3_large/backbone+head": "detection",
    "fcos_resnet50_fpn/head": "detection",
    "maskrcnn_resnet50_fpn_v2/head": "detection",
}


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors in what a net takes or gives; transformers' outputs are mappings of their own."""
    found = [
        leaf for part in pytree.tree_leaves(tree) for leaf in (part.values() if isinstance(part, Mapping) else (part,))
    ]
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def check_net(entry: Net) -> nn.Module:
    """Builds a net, holds it to what ``Net`` promises, and returns it."""
    torch.manual_seed(0)
    model = entry.build()
    first, second = entry.inputs(model), entry.inputs(model)
    assert tensors(first)
    assert all(tensor.shape[0] == 2 for tensor in tensors(first))
    assert len(tensors(first)) == len(tensors(second))
    assert all(map(torch.equal, tensors(first), tensors(second)))
    for mode in (True, False):
        args, kwargs = entry.inputs(model)
        with torch.no_grad():
            outputs = tensors(model.train(mode)(*args, **kwargs))
        assert outputs
        assert all(output.isfinite().all() for output in outputs)
    assert all(map(torch.equal, tensors((args, kwargs)), tensors(first)))
    return model


@pytest.mark.parametrize("zoo", [timm_nets, torchvision_nets, transformers_nets], ids=lambda zoo: zoo.__name__)
def test_names_are_unique_and_described_without_building(zoo: ModuleType) -> None:
    names = zoo.names()
    assert len(set(names)) == len(names) > 0
    for name in names[:: max(len(names) // 20, 1)]:
        entry = zoo.net(name)
        assert entry.name == name
        assert entry.family


@pytest.mark.parametrize("name", transformers_nets.names())
def test_transformers_net_runs(name: str) -> None:
    entry = transformers_nets.net(name)
    model = check_net(entry)
    assert model.config.model_type == entry.family
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


@pytest.mark.parametrize("name", transformers_nets.names())
def test_transformers_settings_are_known(name: str) -> None:
    """A misspelt setting is accepted by transformers, and leaves the size that it meant at its default."""
    config_class = transformers_nets.architecture(name).config_class
    assert unknown(config_class, transformers_nets.CONFIGURATIONS[name].settings) == set()


def unknown(config_class: Any, settings: Mapping[str, Any]) -> set[str]:
    known = {*config_class().to_dict(), *config_class.attribute_map, "attn_implementation", "num_labels"}
    found = set(settings) - known
    for name in settings.keys() & config_class.sub_configs.keys():
        found |= unknown(config_class.sub_configs[name], settings[name])
    return found


def test_a_misspelt_setting_is_found() -> None:
    config_class = transformers_nets.architecture("CLIPModel").config_class
    assert unknown(config_class, {"projection_dims": 28, "text_config": {"hiden_size": 40}}) == {
        "projection_dims",
        "hiden_size",
    }


def test_transformers_zoo_is_as_broad_as_claimed() -> None:
    families = {transformers_nets.net(name).family for name in transformers_nets.names()}
    assert len(transformers_nets.names()) >= 34
    assert len(families) >= 18
    assert families >= {"vit", "swin", "bert", "llama", "t5", "mamba", "wav2vec2", "whisper", "clip"}


def test_torchvision_zoo_holds_all_packages() -> None:
    names = torchvision_nets.names()
    for package in torchvision_nets.PACKAGES:
        assert set(torchvision_nets.models.list_models(module=package)) <= set(names)
    detectors = torchvision_nets.models.list_models(module=torchvision_nets.models.detection)
    assert detectors
    for detector in detectors:
        assert f"{detector}/backbone" in names
        assert {f"{detector}/head", f"{detector}/backbone+head"} & set(names)
        assert detector not in names


@pytest.mark.parametrize(("name", "family"), TORCHVISION_SAMPLE.items(), ids=TORCHVISION_SAMPLE)
def test_torchvision_net_runs(name: str, family: str) -> None:
    entry = torchvision_nets.net(name)
    assert entry.family == family
    check_net(entry)


def test_heads_of_regions_have_a_branch_for_each_kind_of_prediction() -> None:
    for name, kinds in (
        ("fasterrcnn_mobilenet_v3_large_fpn", {"box"}),
        ("keypointrcnn_resnet50_fpn", {"box", "keypoint"}),
    ):
        head = torchvision_nets.net(f"{name}/head").build()
        assert set(head.on_regions) == kinds
