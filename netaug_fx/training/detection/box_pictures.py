"""Images with boxes for the report page: what is there, what was found, what was missed, each to be hovered."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

from netaug_fx.models.detection.boxes import pairwise_cover, pairwise_iou
from netaug_fx.training.detection.annotations import Target
from netaug_fx.training.detection.objective import Detection

FOUND = 0.5
"""Intersection over union from which a detection of the right class counts as right."""
# On the page, in its pixels: how wide images are at least and at most, and how tall letters.
_NARROWEST, _WIDEST, _LETTERS = 240, 640, 14
_LARGEST = 1280  # pixels of the longer side of what is in the page: enough for screens of twice the pixels
_PHOTOGRAPH = 256**2  # pixels from which a colour image costs too much without loss


def draw_boxes(picture: Tensor, found: Detection, target: Target, classes: Sequence[str], least: float) -> str:
    """One image as an SVG element.

    Args:
        picture: uint8 ``[c, h, w]``, at its own size.
        found: Detections in its pixels.
        target: Its boxes in its pixels.
        classes: Names, in the order of the labels.
        least: Detections of a lower score are not drawn.
    """
    height, width = picture.shape[-2:]
    strong = found["scores"] >= least
    boxes, scores, labels = (found[name][strong] for name in ("boxes", "scores", "labels"))
    ignored = target["ignore"] if "ignore" in target else torch.zeros(len(target["labels"]), dtype=torch.bool)
    same = labels[:, None] == target["labels"]
    pairs = _pairs(pairwise_iou(boxes, target["boxes"]).masked_fill(~same | ignored, 0), scores)
    # as in COCO's evaluation: what no wanted box is found by may lie in an ignored one, however many do
    excused = ((pairwise_cover(boxes, target["boxes"]) >= FOUND) & same & ignored).any(1)
    shown = min(max(width, _NARROWEST), _WIDEST)
    letters = _LETTERS * width / shown
    parts = [f'<image href="{_embedded(picture)}" width="{width}" height="{height}"/>']
    for number, box in enumerate(target["boxes"]):
        kind = "ignored" if bool(ignored[number]) else "true" if number in pairs.values() else "missed"
        parts.append(_box(box, f"truth {kind}", f"{classes[int(target['labels'][number])]} ({kind})", "", letters))
    for number, box in enumerate(boxes):
        name = f"{classes[int(labels[number])]} {float(scores[number]):.0%}"
        kind = "right" if number in pairs else "excused" if bool(excused[number]) else "wrong"
        parts.append(_box(box, kind, f"found: {name}", name, letters))
    return (
        f'<svg class="boxes" role="img" viewBox="0 0 {width} {height}" width="{shown}" font-size="{letters:.1f}" '
        f'aria-label="{len(boxes)} boxes found, {len(target["boxes"])} there">{"".join(parts)}</svg>'
    )


def _pairs(overlaps: Tensor, scores: Tensor) -> dict[int, int]:
    """Which detection finds which box: the best detections choose first, as in COCO's evaluation."""
    pairs: dict[int, int] = {}
    for number in scores.argsort(descending=True).tolist():
        fits = (overlaps[number] >= FOUND).nonzero().flatten().tolist()
        free = [index for index in fits if index not in pairs.values()]
        if free:
            pairs[number] = max(free, key=lambda index: float(overlaps[number, index]))
    return pairs


def _box(box: Tensor, kind: str, hover: str, label: str, letters: float) -> str:
    return "".join(_box_parts([round(float(value), 1) for value in box], kind, hover, label, letters))


def _box_parts(corners: Sequence[float], kind: str, hover: str, label: str, letters: float) -> Iterator[str]:
    x1, y1, x2, y2 = corners
    yield f'<g class="{kind}"><title>{escape(hover)}</title>'
    yield f'<rect x="{x1}" y="{y1}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"/>'
    if label:
        yield f'<text x="{x1}" y="{max(y1 - letters / 6, letters * 0.9):.1f}">{escape(label)}</text>'
    yield "</g>"


def _embedded(picture: Tensor) -> str:
    """The image as text; large ones are reduced, since a page of photographs would have megabytes otherwise."""
    image = Image.fromarray((picture[0] if picture.shape[0] == 1 else picture.permute(1, 2, 0)).numpy())
    image.thumbnail((_LARGEST, _LARGEST))
    kind = "jpeg" if image.mode == "RGB" and image.width * image.height >= _PHOTOGRAPH else "png"
    stream = io.BytesIO()
    image.save(stream, format=kind, optimize=True)
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()
