"""What is done to images and their boxes between the data set and the net.

Every image is stretched to the net's square, as GluonCV and Darknet do for the detectors of Cai et al. (ICLR 2022,
section 4.3). Mirroring and stretching are plain torch; expanding, cropping by overlap (Liu et al., *SSD*, ECCV 2016,
section 2.2), jitter of scale (Ghiasi et al., CVPR 2021) and colours are torchvision's, where a setting asks for them.
What happens to an image depends only on its key, which is made of (seed, epoch, index).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netaug_fx.errors import DataError
from netaug_fx.training.data.task import resized
from netaug_fx.training.detection.annotations import Target, select
from netaug_fx.training.detection.data_config import DetectionDataConfig

# Of a box that a jitter of scale cuts, at least so much must be left: less is seldom recognised by people.
_VISIBLE = 0.25

Example = tuple[Tensor, Target]


def squared(picture: Tensor, target: Target, side: int) -> Example:
    """An image uint8 ``[c, h, w]`` stretched to ``[c, side, side]``, and its boxes with it."""
    height, width = picture.shape[-2:]
    boxes = target["boxes"] * torch.tensor([side / width, side / height] * 2)
    return resized(picture.unsqueeze(0), side)[0], {**target, "boxes": boxes}


def mirrored(picture: Tensor, target: Target) -> Example:
    """An image ``[c, h, w]`` and its boxes with left and right exchanged."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = picture.shape[-1]
    return picture.flip(-1), {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}


def to_own_size(boxes: Tensor, size: Tensor, side: int) -> Tensor:
    """Boxes ``[n, 4]`` from the net's square to the image's own pixels; ``size`` is its height and width, ``[2]``."""
    return boxes * (size.flip(0).repeat(2).to(boxes) / side)


@dataclass(frozen=True)
class BoxChanges:
    """Random changes to training images and their boxes, which end as squares of ``side`` pixels.

    Boxes that vanish, those of less than a pixel included, are dropped.

    Attributes:
        side: height and width of the results in pixels.
        flip: mirror half of the images.
        zoom_out: put half of the images onto a ground up to so many times larger; 1 puts none.
        iou_crop: cut out a part that overlaps some box by a random amount, and keep boxes whose centre is in it.
        scale_jitter: least and greatest factor by which the square is scaled, then cut or filled up; None for neither.
        brightness, saturation: strength of the changes of colour.
        fill: the ground's value in each channel, from 0 to 255.
    """

    side: int
    flip: bool = False
    zoom_out: float = 1.0
    iou_crop: bool = False
    scale_jitter: tuple[float, float] | None = None
    brightness: float = 0.0
    saturation: float = 0.0
    fill: tuple[float, ...] = (0.0,)

    def __call__(self, picture: Tensor, target: Target, key: int) -> Example:
        """An image uint8 ``[c, h, w]`` and its target, changed as ``key`` decides: uint8 ``[c, side, side]``."""
        # Only the CPU's generator: torch.manual_seed would also seed an accelerator's, which fork_rng([]) leaves alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            # Drawn first, so that what is mirrored does not depend on what else is done.
            flip = bool(torch.rand(()) < 0.5) and self.flip
            for change in self._before:
                picture, target = change(picture, target)
            picture, target = squared(picture, target, self.side)
            if self.scale_jitter is not None:
                picture, target = self._jittered(picture, target)
        if flip:
            picture, target = mirrored(picture, target)
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        return picture, select(target, (x2 - x1 >= 1) & (y2 - y1 >= 1))

    @functools.cached_property
    def _before(self) -> list[Callable[[Tensor, Target], Example]]:
        """What is done to an image at its own size, in order."""
        changes: list[Callable[[Tensor, Target], Example]] = []
        if self.brightness or self.saturation:
            v2 = torchvision_transforms()
            changes.append(functools.partial(_run, v2.ColorJitter(self.brightness, saturation=self.saturation)))
        if self.zoom_out > 1:
            v2 = torchvision_transforms()
            changes.append(functools.partial(_run, v2.RandomZoomOut(list(self.fill), (1.0, self.zoom_out))))
        if self.iou_crop:
            changes.append(functools.partial(_cropped, torchvision_transforms().RandomIoUCrop()))
        return changes

    @functools.cached_property
    def _jitter(self) -> tuple[Any, Any]:
        v2, square = torchvision_transforms(), (self.side, self.side)
        crop = v2.RandomCrop(square, pad_if_needed=True, fill=list(self.fill))
        return v2.ScaleJitter(square, self.scale_jitter), crop

    def _jittered(self, picture: Tensor, target: Target) -> Example:
        scale, crop = self._jitter
        picture, target = _run(scale, picture, target)
        before = _areas(target)
        picture, target = _run(crop, picture, target)
        return picture, select(target, _areas(target) >= _VISIBLE * before)


def _run(transform: Any, picture: Tensor, target: Target) -> Example:
    """One of torchvision's transforms on an image and its boxes."""
    tensors = _torchvision_tensors()
    boxes = tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=tuple(picture.shape[-2:]))
    changed, moved = transform(tensors.Image(picture), boxes)
    return changed.as_subclass(Tensor), {**target, "boxes": moved.as_subclass(Tensor)}


def _cropped(crop: Any, picture: Tensor, target: Target) -> Example:
    """A part that some box is in; where there is no box there is nothing to keep, and the image stays whole."""
    if not len(target["boxes"]):
        return picture, target
    picture, target = _run(crop, picture, target)
    # torchvision makes boxes whose centre is outside points.
    return picture, select(target, _areas(target) > 0)


def _areas(target: Target) -> Tensor:
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    return (x2 - x1) * (y2 - y1)


def torchvision_transforms() -> Any:
    """``torchvision.transforms.v2``.

    Raises:
        DataError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise DataError(
            "data.zoom_out, data.iou_crop, data.scale_jitter, data.brightness and data.saturation need torchvision "
            f"({error}): pip install 'netaug_fx[data]'. Or leave them away; data.flip needs nothing more."
        ) from None
    return v2


def _torchvision_tensors() -> Any:
    from torchvision import tv_tensors

    return tv_tensors


def detection_changes(config: DetectionDataConfig, side: int, mean: Sequence[float], *, flip: bool) -> BoxChanges:
    """The changes that ``config`` asks for; whether to mirror is as given where it is unset.

    Raises:
        DataError: torchvision is asked for and not installed.
    """
    if config.needs_torchvision:
        torchvision_transforms()
    return BoxChanges(
        side,
        flip=flip if config.flip is None else config.flip,
        zoom_out=config.zoom_out,
        iou_crop=config.iou_crop,
        scale_jitter=config.scale_jitter,
        brightness=config.brightness,
        saturation=config.saturation,
        # What the net sees as zero.
        fill=tuple(round(255 * value) for value in mean),
    )
