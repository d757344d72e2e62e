"""Boxes drawn into images: which are right, wrong, missed, or not judged."""

from __future__ import annotations

import base64
import io
import re

import torch
from PIL import Image
from torch import Tensor

from netaug_fx.training.detection.box_pictures import draw_boxes

CLASSES = ("cat", "<dog>")


def drawn(found: list[tuple[list[float], float, int]], there: list[tuple[list[float], int, bool]]) -> str:
    detections = {
        "boxes": torch.tensor([box for box, _, _ in found]).reshape(-1, 4),
        "scores": torch.tensor([score for _, score, _ in found]),
        "labels": torch.tensor([label for _, _, label in found], dtype=torch.int64),
    }
    target = {
        "boxes": torch.tensor([box for box, _, _ in there]).reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in there], dtype=torch.int64),
        "ignore": torch.tensor([ignore for _, _, ignore in there], dtype=torch.bool),
    }
    return draw_boxes(picture(3), detections, target, CLASSES, 0.4)


def picture(channels: int) -> Tensor:
    return torch.arange(channels * 20 * 30, dtype=torch.float).remainder(256).to(torch.uint8).reshape(channels, 20, 30)


def kinds(text: str) -> list[str]:
    return re.findall(r'<g class="([^"]+)"', text)


A, B, C = [0.0, 0.0, 10.0, 10.0], [12.0, 2.0, 20.0, 18.0], [21.0, 0.0, 29.0, 8.0]


def test_each_box_is_told_what_became_of_it() -> None:
    text = drawn(
        [(A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0), (C, 0.3, 0)],
        [(A, 0, False), (B, 1, False), (C, 0, True)],
    )
    # the second on A finds nothing that is left, B is of another class, and C's score is too low to be drawn
    assert kinds(text) == ["truth true", "truth missed", "truth ignored", "right", "wrong", "wrong"]
    assert "<title>&lt;dog&gt; (missed)</title>" in text
    assert "<title>found: cat 90%</title>" in text
    assert '<rect x="12.0" y="2.0" width="8.0" height="16.0"/>' in text


def test_the_better_detection_chooses_first() -> None:
    close = [1.0, 0.0, 11.0, 10.0]
    assert kinds(drawn([(close, 0.5, 0), (A, 0.9, 0)], [(A, 0, False)])) == ["truth true", "wrong", "right"]


def test_the_image_is_within_the_page_as_it_was() -> None:
    for channels in (1, 3):
        image = picture(channels)
        none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        text = draw_boxes(image, none, none, CLASSES, 0.4)
        found = re.search(r'href="data:image/png;base64,([^"]+)"', text)
        assert found is not None
        shown = Image.open(io.BytesIO(base64.b64decode(found[1])))
        assert shown.size == (30, 20)
        assert bytes(shown.tobytes()) == bytes(image.permute(1, 2, 0).numpy().tobytes())
        assert 'aria-label="0 boxes found, 0 there"' in text


def test_photographs_are_reduced_and_letters_keep_their_size_on_the_page() -> None:
    image = torch.randint(0, 256, (3, 1500, 3000), dtype=torch.uint8)
    found = {
        "boxes": torch.tensor([[0.0, 0.0, 3000.0, 900.0]]),
        "scores": torch.ones(1),
        "labels": torch.zeros(1).long(),
    }
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    text = draw_boxes(image, found, none, CLASSES, 0.4)
    embedded = re.search(r'href="data:image/jpeg;base64,([^"]+)" width="3000" height="1500"', text)
    assert embedded is not None
    assert Image.open(io.BytesIO(base64.b64decode(embedded[1]))).size == (1280, 640)
    assert 'viewBox="0 0 3000 1500" width="640" font-size="65.6"' in text
    assert '<text x="0.0" y="59.1">cat 100%</text>' in text


def test_what_lies_in_an_ignored_box_is_neither_right_nor_wrong_and_takes_no_detection_from_a_wanted_one() -> None:
    inside = [1.0, 1.0, 4.0, 4.0]
    text = drawn([(inside, 0.9, 0), (A, 0.8, 0)], [(A, 0, True), ([0.5, 0.0, 10.0, 10.0], 0, False)])
    assert kinds(text) == ["truth ignored", "truth true", "excused", "right"]
