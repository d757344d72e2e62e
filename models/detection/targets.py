"""What is to be found in a batch of images: the targets, checked and padded to one tensor each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from netaug_fx.errors import InputError

Target = Mapping[str, Tensor]
"""One image's ``"boxes"`` float32 (n, 4), corners in pixels; ``"labels"`` int64 (n,); maybe ``"ignore"`` bool (n,)."""


@dataclass(frozen=True)
class Batch:
    """The targets of a batch, with room for as many boxes an image as the fullest image has, and at least one.

    Attributes:
        boxes: float32 (N, T, 4), corners in pixels; zeros where there is none.
        labels: int64 (N, T).
        wanted: bool (N, T): a box that is to be found.
        ignored: bool (N, T): a box that is neither to be found nor background.
    """

    boxes: Tensor
    labels: Tensor
    wanted: Tensor
    ignored: Tensor


def collate(targets: Sequence[Target], images: int, num_classes: int, device: torch.device) -> Batch:
    """Check the targets of a batch and pad them.

    Boxes may reach over the image's borders or have no area; no loss gets infinite by them.

    Args:
        targets: one for each image.
        images: how many images there are.
        num_classes: labels run from 0 to one below.
        device: where the result is wanted.

    Raises:
        InputError: naming the image, what is wrong with its target and what is expected.
    """
    if not isinstance(targets, (list, tuple)) or len(targets) != images:
        found = f"{len(targets)} targets" if isinstance(targets, (list, tuple)) else f"a {type(targets).__name__}"
        raise InputError(f"targets: found {found} for {images} images; expected a list of one dict for each image.")
    for index, target in enumerate(targets):
        _check(target, f"targets[{index}]", num_classes)
    ignored = [_ignored(target) for target in targets]
    # At least one row: what looks for the best of all boxes then needs no case of its own for no boxes at all.
    room = max([1, *map(len, ignored)])
    return Batch(
        boxes=_padded([target["boxes"].float() for target in targets], room).to(device),
        labels=_padded([target["labels"] for target in targets], room).to(device),
        wanted=_padded([~each for each in ignored], room).to(device),
        ignored=_padded(ignored, room).to(device),
    )


def _padded(rows: Sequence[Tensor], room: int) -> Tensor:
    """Tensors (n, ...) of several lengths as one (N, room, ...), filled up with zeros."""
    return torch.stack([F.pad(each, (0, 0) * (each.dim() - 1) + (0, room - len(each))) for each in rows])


def _ignored(target: Target) -> Tensor:
    given = target.get("ignore")
    return torch.zeros_like(target["labels"], dtype=torch.bool) if given is None else given


def _check(target: Target, name: str, num_classes: int) -> None:
    """Refuse what the losses would stumble over later, with a message that says nothing of the cause."""
    for key in ("boxes", "labels"):
        if not isinstance(target, Mapping) or not isinstance(target.get(key), Tensor):
            raise InputError(f"{name} has no tensor {key!r}; expected a dict with 'boxes' [n, 4] and 'labels' [n].")
    boxes, labels, ignored = target["boxes"], target["labels"], _ignored(target)
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise InputError(
            f"{name}['boxes'] is {boxes.dtype} of shape {list(boxes.shape)}; expected float32 [n, 4] with corners "
            "x1, y1, x2, y2 in pixels; for no boxes torch.zeros(0, 4)."
        )
    for key, tensor, dtype in (("labels", labels, torch.int64), ("ignore", ignored, torch.bool)):
        if tensor.shape != boxes.shape[:1] or tensor.dtype != dtype:
            raise InputError(
                f"{name}[{key!r}] is {tensor.dtype} of shape {list(tensor.shape)}; expected {dtype} [{len(boxes)}], "
                "one for each box."
            )
    proper = (boxes[:, 2:] >= boxes[:, :2]).all(1) & boxes.isfinite().all(1)
    if not proper.all():
        at = int((~proper).nonzero()[0, 0])
        raise InputError(
            f"{name}['boxes'][{at}] is {boxes[at].tolist()}; expected finite corners with x1 <= x2 and y1 <= y2. Mend "
            "or drop such boxes when the data is read."
        )
    # Which class an ignored box has does not matter, and crowds of unknown things have none.
    known = (labels >= 0) & (labels < num_classes)
    if not (known | ignored).all():
        at = int((~(known | ignored)).nonzero()[0, 0])
        raise InputError(
            f"{name}['labels'][{at}] is {int(labels[at])}; the detector has classes 0 to {num_classes - 1}. Give "
            "num_classes as many as the data has, or drop boxes of other classes."
        )
