"""What a detector learns: the losses that it gives itself, judged by mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from netaug_fx.errors import InputError
from netaug_fx.step import total_loss
from netaug_fx.training.data.loaders import EpochOrder
from netaug_fx.training.detection.annotations import Target
from netaug_fx.training.detection.changes import to_own_size
from netaug_fx.training.detection.data_config import DetectionDataConfig
from netaug_fx.training.detection.detect_config import AnswerConfig
from netaug_fx.training.detection.detection_task import DetectionBatch, DetectionTask
from netaug_fx.training.detection.loaders import make_loaders
from netaug_fx.training.detection.metrics import average_precision
from netaug_fx.training.objective import Lesson

if TYPE_CHECKING:
    from netaug_fx.training.arm import Arm

Detection = Mapping[str, Tensor]


class Boxes:
    """Objects in images: the net's own losses, mean average precision."""

    counts: tuple[str, ...] = ()
    score = "val_map"

    def __init__(self, answers: AnswerConfig) -> None:
        self.answers = answers

    def loaders(self, arm: Arm) -> tuple[DataLoader[DetectionBatch], EpochOrder, DataLoader[DetectionBatch]]:
        """Batches of images and targets."""
        task, data = arm.task, arm.config.data
        assert isinstance(task, DetectionTask)
        assert isinstance(data, DetectionDataConfig)
        return make_loaders(task, data, arm.config.seed)

    def lesson(self, arm: Arm, batch: DetectionBatch) -> Lesson:
        """The images with their boxes."""
        return _Boxed(*batch)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nothing beside the losses: detections are made of validation images alone."""
        return {}

    def judge(self, arm: Arm, net: nn.Module) -> dict[str, float]:
        """``val_map``, ``val_map_50`` and ``val_map_75``, from 0 to 1; boxes are compared at the images' own size."""
        pairs: list[tuple[Detection, Target]] = []
        judged = arm.net if arm.average is None else arm.average.averaged.module
        for images, targets in arm.val_loader:
            with arm.accelerator.autocast():
                output = net(images)
            found = detections(judged, output, images, self.answers, len(arm.task.classes))
            own = [at_own_size(each, target, images.shape[-1]) for each, target in zip(found, targets, strict=True)]
            pairs += arm.accelerator.gather_for_metrics(own, use_gather_object=True)
        found_at = average_precision(pairs, arm.task.classes, by_class=False)
        return {f"val_{name}": found_at[name] or 0.0 for name in ("map", "map_50", "map_75")}


class _Boxed:
    """A batch of images with targets."""

    def __init__(self, pictures: Tensor, targets: Sequence[Target]) -> None:
        self.pictures, self.targets = pictures, targets

    @property
    def images(self) -> int:
        return len(self.targets)

    def loss(self, net: nn.Module) -> tuple[Tensor, None]:
        return total_loss(net(self.pictures, self.targets)), None

    def counted(self, output: None) -> tuple[Tensor, ...]:
        return ()


def detections(net: nn.Module, output: Any, images: Tensor, answers: AnswerConfig, classes: int) -> list[Detection]:
    """Detections of each image, in pixels of the net's input; those that are not finite are left out.

    Args:
        net: Turns its predictions into detections by its method ``detect``, unless they are a list of dicts with
            ``boxes``, ``scores`` and ``labels`` as they are.
        output: What the net gave for the images alone.
        images: What it was given, ``[n, channels, height, width]``.
        answers: Which detections count; of a list as it is, those of enough score.
        classes: How many classes there are.

    Raises:
        InputError: it is neither, or what it gives are no detections.
    """
    if isinstance(output, list) and all(isinstance(each, Mapping) and "scores" in each for each in output):
        return [_strongest(each, answers) for each in _required(output, images, classes, type(net).__name__)]
    if not callable(getattr(net, "detect", None)):
        raise InputError(
            f"{type(net).__name__} gives {type(output).__name__} for images; expected a list of dicts with boxes, "
            "scores and labels, or a method detect(predictions, size) that makes it of them"
        )
    height, width = images.shape[-2:]
    limits = {"score_threshold": answers.score, "iou_threshold": answers.overlap, "limit": answers.limit}
    detect: Any = net.detect
    # in single precision boxes are exact to the pixel
    exact = pytree.tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, output)
    return _required(detect(exact, (int(height), int(width)), **limits), images, classes, type(net).__name__)


def _required(found: Any, images: Tensor, classes: int, name: str) -> list[Detection]:
    """What a detector of the user's own gives for a batch, where boxes and scores are finite.

    Raises:
        InputError: these are not the detections of so many images.
    """
    if not isinstance(found, Sequence) or len(found) != len(images):
        given = f"{len(found)} of them" if isinstance(found, Sequence) else type(found).__name__
        raise InputError(f"{name}: expected a list with the detections of each of {len(images)} images, found {given}")
    finite: list[Detection] = []
    for each in found:
        _require_detection(each, classes, name)
        # COCO's evaluation takes a box that is no number for one that overlaps everything.
        sound = each["boxes"].isfinite().all(1) & each["scores"].isfinite()
        finite.append({key: each[key][sound] for key in ("boxes", "scores", "labels")})
    return finite


def _require_detection(found: Any, classes: int, name: str) -> None:
    """Looks at what a detector of the user's own gives for an image.

    Raises:
        InputError: it is no detection.
    """
    keys = ("boxes", "scores", "labels")
    if not isinstance(found, Mapping) or not all(isinstance(found.get(key), Tensor) for key in keys):
        raise InputError(f"{name} gives detections without the tensors {', '.join(keys)}: {found!r}"[:300])
    boxes, scores, labels = (found[key] for key in keys)
    if boxes.shape != (len(scores), 4) or labels.shape != scores.shape or labels.is_floating_point():
        raise InputError(
            f"{name} gives boxes {list(boxes.shape)}, scores {list(scores.shape)} and labels {list(labels.shape)} of "
            f"{labels.dtype}; expected [m, 4], [m] and integers [m]"
        )
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InputError(
            f"{name} gives labels from {int(labels.min())} to {int(labels.max())}; the data has {classes} classes, "
            f"numbered from 0, and background is none of them"
        )


def _strongest(found: Detection, answers: AnswerConfig) -> Detection:
    """The best detections of enough score."""
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["scores"][order] > answers.score][: answers.limit]
    return {key: found[key][order] for key in ("boxes", "scores", "labels")}


def at_own_size(found: Detection, target: Target, side: int) -> tuple[Detection, Target]:
    """Detections and target of a validation image, on the CPU, in pixels of the image instead of the net's input."""
    answer = {name: value.detach().cpu() for name, value in found.items()}
    truth = {name: value.cpu() for name, value in target.items()}
    size = truth.pop("size")
    answer["boxes"] = to_own_size(answer["boxes"].float(), size, side)
    truth["boxes"] = to_own_size(truth["boxes"], size, side)
    return answer, truth
