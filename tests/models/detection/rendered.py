"""Tiny images with patches of three patterns, and their targets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from netaug_fx.models import detection

CLASSES = 3
SIDE = 64
Targets = list[dict[str, Tensor]]


def scenes(count: int = 4) -> tuple[Tensor, Targets]:
    """Images (count, 1, 64, 64) with one to three patches each: plain, with rows, with columns."""
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.zeros(count, 1, SIDE, SIDE), []
    for index, image in enumerate(images):
        boxes, labels = [], []
        for number in range(index % 3 + 1):
            width, height, right, down = torch.randint(0, 6, (4,), generator=generator).tolist()
            width, height = width + 12, height + 14
            left, top = 4 + number % 2 * 32 + right, 4 + number // 2 * 32 + down
            label = (index + number) % CLASSES
            patch = image[0, top : top + height, left : left + width]
            patch.fill_(1)
            if label:
                (patch[::2] if label == 1 else patch[:, ::2]).zero_()
            boxes.append([left, top, left + width, top + height])
            labels.append(label)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
    return images, targets


def small(name: str, channels: int | None = None, classes: int = CLASSES) -> detection.Detector:
    """A detector with the norm statistics of a trained net, so that a wrong index map of a norm would show."""
    torch.manual_seed(0)
    detector = detection.create(name, num_classes=classes, in_channels=channels)
    for module in norms(detector):
        nn.init.uniform_(module.running_mean, -0.2, 0.2)
        nn.init.uniform_(module.running_var, 0.5, 2.0)
    return detector


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
