"""Mean average precision as COCO defines it, by torchmetrics on COCO's own evaluation (pycocotools)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netaug_fx.errors import InputError

SIZES = ("small", "medium", "large")
_KEYS = ("map", "map_50", "map_75", *(f"map_{size}" for size in SIZES))


def need_coco() -> None:
    """Looks for what judges detections.

    Raises:
        InputError: pycocotools or torchvision is missing.
    """
    for name in ("pycocotools.cocoeval", "torchvision"):
        try:
            importlib.import_module(name)
        except Exception as error:  # torchvision fails in its own ways beside another build of torch
            raise InputError(
                f"mean average precision is computed by torchmetrics with pycocotools and torchvision, and {name} "
                f"cannot be imported ({type(error).__name__}: {error}): pip install 'netaug_fx[train,detect]'"
            ) from None


def average_precision(
    pairs: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
    classes: Sequence[str],
    *,
    by_class: bool = True,
) -> dict[str, Any]:
    """Mean average precision of detections against targets.

    Boxes of both are in pixels of the images at their own size, where COCO's sizes are defined: small below 32², large
    above 96² pixels. Boxes marked ``ignore`` are COCO's crowds: neither is anything missed that does not find them,
    nor is anything wrong that lies in them.

    Args:
        pairs: The detections (``boxes``, ``scores``, ``labels``) and the target (``boxes``, ``labels``, ``ignore``) of
            each image.
        classes: Names, in the order of the labels.
        by_class: Whether each class is also judged by itself, which takes about as long again.

    Returns:
        ``map`` over overlaps from 0.5 to 0.95, ``map_50``, ``map_75``, ``map_small``, ``map_medium``, ``map_large``,
        and ``by_class``, ``map`` of each by name; None where there is no box to find.

    Source: Lin et al., Microsoft COCO, ECCV 2014, and its evaluation code.
    """
    from torchmetrics.detection import MeanAveragePrecision

    # What other processes found is among the pairs already.
    metric = MeanAveragePrecision(iou_type="bbox", backend="pycocotools", class_metrics=by_class, sync_on_compute=False)
    metric.warn_on_many_detections = False
    for found, target in pairs:
        labels = target["labels"]
        crowds = target.get("ignore", torch.zeros(len(labels), dtype=torch.bool))
        truth = {"boxes": target["boxes"], "labels": labels, "iscrowd": crowds.int()}
        metric.update([{name: found[name] for name in ("boxes", "scores", "labels")}], [truth])
    found_of: Mapping[str, Tensor] = metric.compute()
    whole: dict[str, Any] = {key: _or_none(float(found_of[key])) for key in _KEYS}
    if by_class:
        names, values = (found_of[key].reshape(-1).tolist() for key in ("classes", "map_per_class"))
        known = dict(zip(names, values, strict=True))
        whole["by_class"] = {name: _or_none(known.get(label, -1.0)) for label, name in enumerate(classes)}
    return whole


def _or_none(value: float) -> float | None:
    """COCO's -1 says that there was nothing to find."""
    return None if value < 0 else value
