"""A short training on four tiny images finds every box in them."""

from __future__ import annotations

import pytest
import torch

from netaug_fx.models import detection
from netaug_fx.models.detection.boxes import pairwise_iou
from tests.models.detection.rendered import CLASSES, SIDE, scenes


@pytest.mark.parametrize("name", ["yolo_scenes", "ssdlite_scenes"])
def test_all_boxes_are_found_after_a_short_training(name: str) -> None:
    torch.manual_seed(0)
    net = detection.create(name, num_classes=CLASSES)
    images, targets = scenes()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(90):
        optimizer.zero_grad()
        sum(net(images, targets).values()).backward()
        optimizer.step()
    net.eval()
    found = net.detect(net(images), (SIDE, SIDE), score_threshold=0.3)
    for own, target in zip(found, targets, strict=True):
        overlaps = pairwise_iou(target["boxes"], own["boxes"]) > 0.5
        right = overlaps & (target["labels"][:, None] == own["labels"])
        assert right.any(1).all()
        assert len(own["boxes"]) == len(target["boxes"])
