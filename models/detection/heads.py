"""Heads: from the levels of a feature pyramid to predictions, and from predictions to losses and boxes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netaug_fx.errors import InputError
from netaug_fx.models.blocks import Activation, initialise_
from netaug_fx.models.detection import anchors, boxes, ssd_losses, yolo_losses
from netaug_fx.models.detection.anchors import Priors, Shapes
from netaug_fx.models.detection.neck import Separable, depthwise
from netaug_fx.models.detection.targets import Target, collate

Predictions = tuple[Tensor, ...]

# How likely an untrained net thinks a box in a given place. Without, the first steps only teach that there are few.
# Lin et al., Focal Loss, arXiv 1708.02002, section 3.3.
_FIRST_GUESS = 0.01


class Head(nn.Module):
    """What both heads have in common: classes, levels with strides, and anchors.

    Args:
        strides: of the levels, finest first.
        shapes: the anchors of each level, as many for each.
        num_classes: classes, background not among them.

    Attributes:
        anchors: buffer (levels, anchors, 2), widths and heights as parts of the image's side.

    Raises:
        InputError: there are no classes, no levels, or not as many anchors for each level.
    """

    anchors: Tensor

    def __init__(self, strides: Sequence[int], shapes: Shapes, num_classes: int) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise InputError(f"num_classes is {num_classes!r}; expected an integer of at least 1, without background.")
        numbers = [len(level) for level in shapes]
        if not numbers or len(numbers) != len(strides) or len(set(numbers)) != 1 or 0 in numbers:
            raise InputError(
                f"the levels have {numbers} anchors, and there are {len(strides)} strides; expected the same number of "
                "anchors, at least one, for each stride."
            )
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.register_buffer("anchors", torch.tensor([[list(shape) for shape in level] for level in shapes]))

    @abstractmethod
    def decode(self, predictions: Predictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes (N, M, 4), corners in pixels within the image, and scores (N, M, classes) in [0, 1].

        Args:
            predictions: what ``forward`` gave.
            size: height and width of the images in pixels.
        """

    @abstractmethod
    def losses(self, predictions: Predictions, targets: Sequence[Target], size: tuple[int, int]) -> dict[str, Tensor]:
        """Losses by name, whose sum is to be minimised; computed in float32 at least.

        Args:
            predictions: what ``forward`` gave.
            targets: what is to be found in each image.
            size: height and width of the images in pixels.

        Raises:
            InputError: the targets cannot be used.
        """

    def _priors(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Priors:
        return anchors.priors(self.anchors, _sizes(maps), self.strides, size)

    def _rows(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([anchors.rows(each, self.anchors.shape[1]) for each in maps], 1)


class YoloHead(Head):
    """YOLOv3-style: at every pixel and for every anchor a box, whether there is one, and its classes.

    Args:
        in_channels: of each level, finest first.
        strides: of each level.
        shapes: anchors of each level.
        num_classes: classes, background not among them.
        activation: class of the activations.

    Shapes: a tuple of (N, in_channels[i], H_i, W_i) -> a tuple of (N, anchors * (5 + classes), H_i, W_i): for each
    anchor four numbers of the box, one of objectness, and the classes.

    Raises:
        InputError: as for ``Head``.

    Paper: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, with a depthwise-separable convolution in the place of a full
    one before the prediction.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        shapes: Shapes,
        num_classes: int,
        activation: Activation = nn.ReLU6,
    ) -> None:
        super().__init__(strides, shapes, num_classes)
        number = self.anchors.shape[1]
        self.levels = nn.ModuleList(
            nn.Sequential(Separable(width, width, activation), nn.Conv2d(width, number * (5 + num_classes), 1))
            for width in in_channels
        )
        initialise_(self)
        for bias in _begin_small_(self):
            bias.view(number, -1)[:, 4:] = -math.log(1 / _FIRST_GUESS - 1)

    def forward(self, features: tuple[Tensor, ...]) -> Predictions:
        """Raw predictions of each level, finest first."""
        return tuple(level(feature) for level, feature in zip(self.levels, features, strict=True))

    def decode(self, predictions: Predictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As for ``Head``; a score is the objectness times the class's own."""
        raw = self._rows(predictions)
        found = self._boxes(raw, self._priors(predictions, size))
        return boxes.clip(found, size), raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()

    def losses(self, predictions: Predictions, targets: Sequence[Target], size: tuple[int, int]) -> dict[str, Tensor]:
        """As for ``Head``: ``"box"``, ``"objectness"`` and ``"classes"``."""
        first = predictions[0]
        batch = collate(targets, len(first), self.num_classes, first.device)
        with torch.autocast(first.device.type, enabled=False):
            raw = self._rows(predictions)
            found = self._boxes(raw, self._priors(predictions, size))
            matched = yolo_losses.assign(batch, self.anchors, _sizes(predictions), self.strides, size)
            return yolo_losses.yolo_losses(raw, found, batch, matched)

    def _boxes(self, raw: Tensor, priors: Priors) -> Tensor:
        """The predicted boxes, not cut off: centres stay within their pixel of the feature map (section 2.1)."""
        centres = priors.boxes[:, :2] + (raw[..., :2].sigmoid() - 0.5) * priors.strides
        sizes = priors.boxes[:, 2:] * raw[..., 2:4].clamp(max=ssd_losses.MOST_GROWTH).exp()
        return boxes.to_corners(torch.cat((centres, sizes), -1))


class SSDLiteHead(Head):
    """SSDLite-style: at every pixel and for every anchor offsets of a box, and a softmax of classes and background.

    Args:
        in_channels: of each level, finest first.
        strides: of each level.
        shapes: anchors of each level.
        num_classes: classes, background not among them.
        activation: class of the activations.

    Shapes: a tuple of L maps (N, in_channels[i], H_i, W_i) -> a tuple of 2 L: first of each level the classes
    (N, anchors * (classes + 1), H_i, W_i), background last; then of each level the offsets (N, anchors * 4, H_i, W_i).

    Raises:
        InputError: as for ``Head``.

    Papers: Liu et al., SSD, arXiv 1512.02325; Sandler et al., MobileNetV2, arXiv 1801.04381, section 6.2 (a depthwise
    and a pointwise convolution for each prediction).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        shapes: Shapes,
        num_classes: int,
        activation: Activation = nn.ReLU6,
    ) -> None:
        super().__init__(strides, shapes, num_classes)
        number = self.anchors.shape[1]

        def levels(outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(depthwise(width, activation), nn.Conv2d(width, number * outputs, 1))
                for width in in_channels
            )

        self.classes, self.offsets = levels(num_classes + 1), levels(4)
        initialise_(self)
        _begin_small_(self)

    def forward(self, features: tuple[Tensor, ...]) -> Predictions:
        """Raw predictions: classes of each level, then offsets of each level, finest first."""
        classes = [level(feature) for level, feature in zip(self.classes, features, strict=True)]
        offsets = [level(feature) for level, feature in zip(self.offsets, features, strict=True)]
        return (*classes, *offsets)

    def decode(self, predictions: Predictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As for ``Head``; a score is the class's probability."""
        classes, offsets = self._split(predictions)
        found = ssd_losses.decode(self._rows(offsets), self._priors(offsets, size).boxes)
        scores = self._rows(classes).softmax(-1)[..., :-1]
        return boxes.clip(boxes.to_corners(found), size), scores

    def losses(self, predictions: Predictions, targets: Sequence[Target], size: tuple[int, int]) -> dict[str, Tensor]:
        """As for ``Head``: ``"box"`` and ``"classes"``."""
        classes, offsets = self._split(predictions)
        first = predictions[0]
        batch = collate(targets, len(first), self.num_classes, first.device)
        with torch.autocast(first.device.type, enabled=False):
            start = self._priors(offsets, size).boxes
            matched = ssd_losses.assign(batch, start)
            return ssd_losses.ssd_losses(self._rows(classes), self._rows(offsets), start, batch, matched)

    def _split(self, predictions: Predictions) -> tuple[Predictions, Predictions]:
        return predictions[: len(self.strides)], predictions[len(self.strides) :]


def _sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(each.shape[-2], each.shape[-1]) for each in maps]


def _begin_small_(head: Head) -> list[Tensor]:
    """Predictions that start near zero: boxes then start as their anchors. Returns the biases, detached."""
    predictions = [each for each in head.modules() if isinstance(each, nn.Conv2d) and each.bias is not None]
    for each in predictions:
        nn.init.normal_(each.weight, std=0.01)
    return [each.bias.detach() for each in predictions if each.bias is not None]
