"""Anchors: the boxes that predictions start from, one of each shape at every pixel of every feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Sequence[Sequence[tuple[float, float]]]
"""Width and height of each anchor of each level, finest level first, as parts of the image's side."""

# Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.3: clusters of COCO's boxes in images of 416 pixels.
_YOLO_SIDE = 416
_YOLO = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


@dataclass(frozen=True)
class Priors:
    """Where every prediction of an image starts from, in the order of the predictions.

    Attributes:
        boxes: float32 (M, 4), centre x, centre y, width, height in pixels.
        strides: float32 (M, 1), pixels of the image for a pixel of the feature map.
    """

    boxes: Tensor
    strides: Tensor


def yolo_shapes() -> Shapes:
    """YOLOv3's nine anchors for strides 8, 16 and 32."""
    return tuple(tuple((width / _YOLO_SIDE, height / _YOLO_SIDE) for width, height in level) for level in _YOLO)


def ssd_shapes(levels: int, smallest: float = 0.1, largest: float = 0.9) -> Shapes:
    """Four anchors a level: squares of the level's scale and of one between it and the next, and both 2:1 oblongs.

    Args:
        levels: how many there are.
        smallest: scale of the finest level, as a part of the image's side.
        largest: scale of the coarsest level.

    Scales grow by a constant factor, not by a constant step as in the paper: that has six levels, and with two or three
    its steps would leave gaps in which a box overlaps no anchor by half.

    Paper: Liu et al., SSD, arXiv 1512.02325, section 2.2.
    """
    factor = (largest / smallest) ** (1 / max(levels - 1, 1))
    long, short = math.sqrt(2), math.sqrt(0.5)
    shapes = []
    for level in range(levels):
        scale = smallest * factor**level
        between = scale * math.sqrt(factor)
        shapes.append(
            ((scale, scale), (between, between), (scale * long, scale * short), (scale * short, scale * long))
        )
    return tuple(shapes)


def side_of(size: tuple[int, int]) -> float:
    """What anchors' shapes are parts of, in pixels: the side of a square as large as the image (height, width)."""
    return math.sqrt(size[0] * size[1])


def priors(shapes: Tensor, maps: Sequence[tuple[int, int]], strides: Sequence[int], size: tuple[int, int]) -> Priors:
    """The anchors of an image, at the middle of each pixel of each feature map.

    Args:
        shapes: (levels, anchors, 2), width and height as parts of the image's side.
        maps: height and width of each level's feature map.
        strides: of each level.
        size: height and width of the image in pixels.

    Returns:
        M rows: level by level, in a level anchor by anchor, for an anchor row by row of the feature map.
    """
    boxes, steps = [], []
    for level, (height, width) in enumerate(maps):
        stride = strides[level]
        y, x = torch.meshgrid(
            (torch.arange(height, device=shapes.device) + 0.5) * stride,
            (torch.arange(width, device=shapes.device) + 0.5) * stride,
            indexing="ij",
        )
        centres = torch.stack((x, y), -1).flatten(0, 1)
        sizes = shapes[level].float() * side_of(size)
        boxes.append(torch.cat((centres.repeat(len(sizes), 1), sizes.repeat_interleave(len(centres), 0)), 1))
        steps.append(torch.full((len(boxes[-1]), 1), float(stride), device=shapes.device))
    return Priors(torch.cat(boxes), torch.cat(steps))


def rows(level: Tensor, anchors: int) -> Tensor:
    """Predictions (N, anchors * K, H, W) of a level, one row for each anchor at each pixel: (N, anchors * H * W, K).

    At least in float32: boxes and losses lose too much in half precision.
    """
    wide = level.to(torch.promote_types(level.dtype, torch.float32))
    return torch.unflatten(wide, 1, (anchors, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)
