"""torchvision's nets with random weights: classification, segmentation, video, optical flow, and parts of detectors.

A whole detector chooses its boxes by their values, so it is listed in parts that take plain tensors: its backbone
(images to feature maps), its head (feature maps, and for the R-CNNs pooled regions, to raw predictions) and, where
nothing is chosen in between, both in one. The heads of the two SSDs are only listed with their backbones: by themselves
they are single layers between a given input and a given output, and have no width of their own.

An input is as small as the net's architecture allows: nets that average over whatever size is left get small images,
nets with tables of positions or of windows the size that they are published for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoos import Inputs, Net, torchvision_shim

torchvision_shim.install()

from torchvision import models  # noqa: E402  (it needs the shim)

PACKAGES = (models, models.segmentation, models.video, models.optical_flow)
"""What is listed whole; the detectors come in parts."""

_SMALL = (3, 96, 96)  # three positions are left at stride 32: enough for the statistics of a batch of two
_SHAPES: dict[str, tuple[int, ...]] = {
    "inception_v3": (3, 299, 299),  # its auxiliary classifier has no room for less
    "maxvit": (3, 224, 224),  # its grids are laid out for this size
    "vision_transformer": (3, 224, 224),
    "swin_transformer": (3, 224, 224),
    "swin_v2_t": (3, 256, 256),
    "swin_v2_s": (3, 256, 256),
    "swin_v2_b": (3, 256, 256),
    "video": (3, 8, 48, 48),
    "s3d": (3, 14, 224, 224),  # ends in a pooling window of the size that this leaves
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
    "swin3d_t": (3, 16, 112, 112),
    "swin3d_s": (3, 16, 112, 112),
    "swin3d_b": (3, 16, 112, 112),
    "optical_flow": (3, 128, 128),  # the coarsest level of its correlation pyramid needs this
    "ssd300_vgg16": (3, 300, 300),  # its last convolutions are unpadded
}
"""Channels and sizes of an input, by net or by family, where they are not small."""

_BOTH = "backbone+head"
_SIDES = (8, 5, 3)  # of a head's feature maps, in pixels; its weights serve every level
_POOLED = {"box": 7, "mask": 14, "keypoint": 14}  # sides of pooled regions, by what is predicted from them


class RegionHeads(nn.Module):
    """The heads of an R-CNN without what chooses boxes between them.

    Args:
        rcnn: A detector of torchvision; its region proposal head and heads on regions are taken over.
    """

    def __init__(self, rcnn: nn.Module) -> None:
        super().__init__()
        regions: Any = rcnn.roi_heads
        self.proposals: nn.Module = rcnn.rpn.head  # type: ignore[union-attr, assignment]
        self.on_regions = nn.ModuleDict(
            {
                kind: nn.Sequential(getattr(regions, f"{kind}_head"), getattr(regions, f"{kind}_predictor"))
                for kind in _POOLED
                if getattr(regions, f"{kind}_head", None) is not None
            }
        )

    def forward(self, features: list[Tensor], regions: Mapping[str, Tensor]) -> dict[str, Any]:
        """Proposals from feature maps (n, c, h, w); predictions from pooled regions (r, c, side, side) of each kind."""
        predictions = {kind: head(regions[kind]) for kind, head in self.on_regions.items()}
        return {"proposals": self.proposals(features), **predictions}


class RawDetector(nn.Module):
    """A detector of one stage from images to raw predictions, without what turns these into boxes.

    Args:
        detector: A detector of torchvision; its backbone and head are taken over.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.get_submodule("backbone")
        self.head = detector.get_submodule("head")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits and box offsets (n, anchors, ...) from images (n, 3, h, w)."""
        predictions: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return predictions


def names() -> list[str]:
    """Every net of the four packages, then the parts of every detector, such as ``fcos_resnet50_fpn/head``."""
    whole = [name for package in PACKAGES for name in models.list_models(module=package)]
    return whole + [f"{name}/{part}" for name in models.list_models(module=models.detection) for part in _parts(name)]


def net(name: str) -> Net:
    """One net; its family is torchvision's sub-package, for classification the file that defines it."""
    whole, _, part = name.partition("/")
    packages = models.get_model_builder(whole).__module__.split(".")[2:]
    family = packages[0]
    shape = _SHAPES.get(whole) or _SHAPES.get(family, _SMALL)

    def build() -> nn.Module:
        return _part(_built(whole, family), part) if part else _built(whole, family)

    def inputs(model: nn.Module) -> Inputs:
        if part == "head":
            return _head_inputs(model)
        if family == "optical_flow":
            return tuple(_random([shape, shape])), {"num_flow_updates": 2}  # more repeat the same weights
        return tuple(_random([shape])), {}

    return Net(name, family, build, inputs)


def _built(name: str, family: str) -> nn.Module:
    settings: dict[str, Any] = {"weights": None}
    if family in ("segmentation", "detection"):
        settings["weights_backbone"] = None
    if family in ("googlenet", "inception"):
        settings["init_weights"] = False  # what they would do slowly by default, with a warning that it will change
    return models.get_model(name, **settings)


def _parts(detector: str) -> tuple[str, ...]:
    if "rcnn" in detector:
        return "backbone", "head"
    return ("backbone", _BOTH) if detector.startswith("ssd") else ("backbone", "head", _BOTH)


def _part(detector: nn.Module, part: str) -> nn.Module:
    if part == _BOTH:
        return RawDetector(detector)
    if part == "head" and hasattr(detector, "roi_heads"):
        return RegionHeads(detector)
    return detector.get_submodule(part)


def _head_inputs(head: nn.Module) -> Inputs:
    if isinstance(head, RegionHeads):
        features = _random(_maps(_in_channels(head.proposals)))
        shapes = [(_in_channels(branch), _POOLED[kind], _POOLED[kind]) for kind, branch in head.on_regions.items()]
        return (features, dict(zip(head.on_regions, _random(shapes), strict=True))), {}
    return (_random(_maps(_in_channels(head))),), {}


def _maps(channels: int) -> list[tuple[int, ...]]:
    return [(channels, side, side) for side in _SIDES]


def _in_channels(module: nn.Module) -> int:
    """What the module's first layer takes; flattened regions are as many channels as there are for each position."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
        if isinstance(layer, nn.Linear):
            return layer.in_features // _POOLED["box"] ** 2
    raise ValueError(f"{type(module).__name__} has no layer that takes channels")


def _random(shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, *shape, generator=generator) for shape in shapes]
