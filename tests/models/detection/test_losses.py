"""Losses of both heads: by hand, against loops in Python, and finite in every corner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from netaug_fx.errors import InputError
from netaug_fx.models.detection import Head, SSDLiteHead, YoloHead, anchors, ssd_losses, yolo_losses
from netaug_fx.models.detection.matching import Match
from netaug_fx.models.detection.targets import Batch, collate
from tests.models.detection.test_boxes import plain_iou

CLASSES = 3
SIZE = (64, 64)
STRIDES = (8, 16)
MAPS = [(8, 8), (4, 4)]
# 8 and 16 pixels; 24 and 32 pixels.
SHAPES = (((0.125, 0.125), (0.25, 0.25)), ((0.375, 0.375), (0.5, 0.5)))
ROWS = 2 * 64 + 2 * 16

Merits = dict[int, float]


def head(kind: type[Head]) -> Head:
    return kind((4, 6), STRIDES, SHAPES, CLASSES)  # type: ignore[arg-type,call-arg]


def zeros(kind: type[Head], images: int = 1) -> tuple[Tensor, ...]:
    made = [torch.zeros_like(each) for each in head(kind)(features(images))]
    return tuple(each.requires_grad_() for each in made)


def features(images: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(images, width, *size) for width, size in zip((4, 6), MAPS, strict=True))


def target(*found: list[float], labels: list[int] | None = None, ignore: list[bool] | None = None) -> dict[str, Tensor]:
    made: dict[str, Any] = {
        "boxes": torch.tensor(found, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([0] * len(found) if labels is None else labels, dtype=torch.int64),
    }
    return made if ignore is None else {**made, "ignore": torch.tensor(ignore, dtype=torch.bool)}


def random_targets(seed: int, images: int = 3, most: int = 9) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(images):
        count = int(torch.randint(0, most, (), generator=generator))
        corners = torch.randint(-8, 72, (count, 2, 2), generator=generator).float()
        made.append(
            {
                "boxes": torch.cat((corners.amin(1), corners.amax(1)), 1),
                "labels": torch.randint(0, CLASSES, (count,), generator=generator),
                "ignore": torch.rand(count, generator=generator) < 0.2,
            }
        )
    return made


def batch_of(targets: list[dict[str, Tensor]]) -> Batch:
    return collate(targets, len(targets), CLASSES, torch.device("cpu"))


# -- by hand ---------------------------------------------------------------------------------------


def test_yolo_losses_by_hand() -> None:
    # As large as the anchor of 8 pixels and in the middle of a pixel of the fine map: predicted exactly by zeros. The
    # anchor of 16 pixels, at a quarter of its area, is not alike enough.
    given = zeros(YoloHead, images=2)
    losses = head(YoloHead).losses(given, [target([16, 24, 24, 32], labels=[2]), target()], SIZE)
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["objectness"].item() == pytest.approx(2 * ROWS * math.log(2) / 2)
    assert losses["classes"].item() == pytest.approx(CLASSES * math.log(2) / 2)
    sum(losses.values()).backward()
    fine = given[0].grad.view(2, 2, 5 + CLASSES, 8, 8)  # column 2, row 3, the first anchor
    assert fine[0, 0, 4, 3, 2] == pytest.approx(-0.25)
    assert fine[0, 0, 5:, 3, 2].tolist() == pytest.approx([0.25, 0.25, -0.25])
    assert fine[0, :, 5:].abs().sum() == pytest.approx(0.75)
    assert fine[1, :, 4].min() == pytest.approx(0.25)


def test_ssd_losses_by_hand() -> None:
    given = zeros(SSDLiteHead, images=2)
    losses = head(SSDLiteHead).losses(given, [target([16, 24, 24, 32], labels=[2]), target()], SIZE)
    # One anchor with a box, three others of its image, and three of the image without; divided by two images.
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["classes"].item() == pytest.approx(7 * math.log(CLASSES + 1) / 2)
    sum(losses.values()).backward()
    fine = given[0].grad.view(2, 2, CLASSES + 1, 8, 8)
    assert fine[0, 0, :, 3, 2].tolist() == pytest.approx([0.125, 0.125, -0.375, 0.125])


def test_the_hardest_negatives_are_taken() -> None:
    given = [each.detach() for each in zeros(SSDLiteHead)]
    classes = given[0].view(1, 2, CLASSES + 1, 8, 8)
    classes[0, 1, 0, 0, :5] = torch.tensor([9.0, 7.0, 8.0, 1.0, 6.0])  # sure of class 0 where there is nothing
    given[0].requires_grad_()
    losses = head(SSDLiteHead).losses(tuple(given), [target([16, 24, 24, 32])], SIZE)
    losses["classes"].backward()
    rows = given[0].grad.view(2, CLASSES + 1, 8, 8).abs().sum(1).nonzero().tolist()
    assert rows == [[0, 3, 2], [1, 0, 0], [1, 0, 1], [1, 0, 2]]


def test_a_box_that_is_another_size_than_its_anchor_costs_what_giou_says() -> None:
    losses = head(YoloHead).losses(zeros(YoloHead), [target([18, 24, 22, 32])], SIZE)
    assert losses["box"].item() == pytest.approx(2 * (1 - 0.5))
    offsets = ssd_losses.encode(torch.tensor([20.0, 28.0, 4.0, 8.0]), torch.tensor([20.0, 28.0, 8.0, 8.0]))
    assert offsets.tolist() == pytest.approx([0, 0, math.log(0.5) / 0.2, 0])


def test_offsets_decode_to_what_was_encoded() -> None:
    priors = anchors.priors(head(SSDLiteHead).anchors, MAPS, STRIDES, SIZE).boxes
    wanted = torch.rand(2, ROWS, 4) * 30 + 1
    torch.testing.assert_close(ssd_losses.decode(ssd_losses.encode(wanted, priors), priors), wanted)


# -- against loops ---------------------------------------------------------------------------------


def matched_by_loops(merits: list[dict[int, float]], threshold: float) -> dict[int, int]:
    """Box by prediction, from each box's merits of predictions: one of its own for each, then what suits."""
    own: dict[int, int] = {}
    without = list(range(len(merits)))
    while without:
        claims: dict[int, int] = {}
        for truth in without:
            free = {prediction: merit for prediction, merit in merits[truth].items() if prediction not in own}
            if not free:
                continue
            best = min(free, key=lambda prediction: (-free[prediction], prediction))
            if best not in claims or merits[truth][best] > merits[claims[best]][best]:
                claims[best] = truth
        if not claims:
            break
        own |= claims
        without = [truth for truth in without if truth not in own.values()]
    found: dict[int, int] = {}
    for truth, each in enumerate(merits):
        for prediction, merit in each.items():
            if merit > threshold and (prediction not in found or merit > merits[found[prediction]][prediction]):
                found[prediction] = truth
    return found | own


def wanted_boxes(each: dict[str, Tensor]) -> dict[int, list[float]]:
    return {i: box for i, box in enumerate(each["boxes"].tolist()) if not each["ignore"][i]}


def assert_matched(found: Match, targets: list[dict[str, Tensor]], merits: Callable[[list[float]], Merits]) -> None:
    for image, each in enumerate(targets):
        wanted = wanted_boxes(each)
        expected = matched_by_loops([merits(box) for box in wanted.values()], 0.5)
        numbers = list(wanted)
        got = {int(p): int(found.truth[image, p]) for p in found.positive[image].nonzero()[:, 0]}
        assert got == {prediction: numbers[truth] for prediction, truth in expected.items()}


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_assigned_to_yolos_predictions_as_by_a_plain_loop(seed: int) -> None:
    def merits(box: list[float]) -> Merits:
        x1, y1, x2, y2 = box
        found = {}
        for number in range(4):
            level, anchor = divmod(number, 2)
            rows, columns = MAPS[level]
            column = min(max(math.floor((x1 + x2) / 2 / STRIDES[level]), 0), columns - 1)
            row = min(max(math.floor((y1 + y2) / 2 / STRIDES[level]), 0), rows - 1)
            side = SHAPES[level][anchor][0] * 64
            prediction = (0, 128)[level] + anchor * rows * columns + row * columns + column
            found[prediction] = plain_iou([0, 0, x2 - x1, y2 - y1], [0, 0, side, side])
        return found

    targets = random_targets(seed, most=6)
    assert_matched(yolo_losses.assign(batch_of(targets), head(YoloHead).anchors, MAPS, STRIDES, SIZE), targets, merits)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_assigned_to_ssds_anchors_as_by_a_plain_loop(seed: int) -> None:
    priors = anchors.priors(head(SSDLiteHead).anchors, MAPS, STRIDES, SIZE).boxes
    corners = torch.cat((priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2), 1).tolist()
    targets = random_targets(seed)
    found = ssd_losses.assign(batch_of(targets), priors)

    def overlaps(box: list[float]) -> Merits:
        return {i: iou for i, prior in enumerate(corners) if (iou := plain_iou(box, prior))}

    assert_matched(found, targets, overlaps)


@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
def test_boxes_about_one_centre_all_get_a_prediction_of_their_own(kind: type[Head]) -> None:
    alike = [target([12, 12, 20, 20], [8, 8, 24, 24], [12, 12, 20, 20], [10, 12, 22, 20]), target([0, 0, 9, 9])]
    batch, shapes = batch_of(alike), head(kind).anchors
    if kind is YoloHead:
        found = yolo_losses.assign(batch, shapes, MAPS, STRIDES, SIZE)
    else:
        found = ssd_losses.assign(batch, anchors.priors(shapes, MAPS, STRIDES, SIZE).boxes)
    assert set(found.truth[0][found.positive[0]].tolist()) == {0, 1, 2, 3}


def test_where_predictions_run_out_some_boxes_go_without() -> None:
    many = [target(*[[12.0, 12.0, 20.0, 20.0]] * 6)]
    found = yolo_losses.assign(batch_of(many), head(YoloHead).anchors, MAPS, STRIDES, SIZE)
    assert int(found.positive.sum()) == 4
    assert sorted(found.truth[found.positive].tolist()) == [0, 1, 2, 3]


# -- corners ---------------------------------------------------------------------------------------

CORNERS: dict[str, list[dict[str, Tensor]]] = {
    "no boxes at all": [target(), target()],
    "an image without boxes": [target([10, 10, 30, 30]), target()],
    "ignored boxes alone": [target([10, 10, 30, 30], ignore=[True]), target([0, 0, 64, 64], ignore=[True])],
    "an ignored box of an unknown class": [target([1, 1, 9, 9], labels=[99], ignore=[True]), target()],
    "equal centres": [target([10, 10, 30, 30], [15, 15, 25, 25], [19, 10, 21, 30]), target()],
    "equal boxes of two classes": [target([10, 10, 30, 30], [10, 10, 30, 30], labels=[0, 1]), target()],
    "a wanted box in a crowd": [target([10, 10, 30, 30], [0, 0, 64, 64], ignore=[False, True]), target()],
    "no area": [target([10, 10, 10, 10], [0, 5, 20, 5]), target([64, 64, 64, 64])],
    "outside and over the border": [target([-30, -30, -10, -5], [60, 60, 90, 90]), target([100, 100, 130, 140])],
    "larger than the image": [target([-1000, -1000, 1000, 1000]), target([0, 0, 64, 64])],
    "very many": [random_targets(0, 1, 400)[0], target()],
}


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
@pytest.mark.parametrize("corner", CORNERS)
def test_losses_and_gradients_are_finite(corner: str, kind: type[Head], scale: float) -> None:
    given = tuple((torch.randn_like(each) * scale).requires_grad_() for each in zeros(kind, images=2))
    losses = head(kind).losses(given, CORNERS[corner], SIZE)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in given)
    assert any(each.grad.any() for each in given)


@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
def test_without_ignore_no_box_is_ignored(kind: type[Head]) -> None:
    given = zeros(kind)
    said = head(kind).losses(given, [target([10, 10, 30, 30], ignore=[False])], SIZE)
    assert said == head(kind).losses(given, [target([10, 10, 30, 30])], SIZE)


@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
def test_ignored_boxes_are_neither_found_nor_background(kind: type[Head]) -> None:
    crowd = [target([0, 0, 64, 32], labels=[1], ignore=[True])]
    given = zeros(kind)
    head(kind).losses(given, crowd, SIZE)["objectness" if kind is YoloHead else "classes"].backward()
    fine = given[0].grad.view(2, -1, 8, 8).abs().sum(1)
    # Anchors of 8 pixels in the upper half lie in the crowd, and say nothing; those below are background.
    assert not fine[0, :4].any()
    if kind is YoloHead:
        assert fine[0, 4:].all()
    assert not any(each.grad.any() for each in given[2:] if each.grad is not None)


@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
def test_losses_under_autocast_are_computed_in_float32(kind: type[Head]) -> None:
    torch.manual_seed(0)
    net = head(kind)
    maps, targets = features(2), [target([10, 10, 30, 30]), target([1, 2, 12, 9], labels=[2])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = net(maps)
        assert {each.dtype for each in given} == {torch.bfloat16}
        losses = net.losses(given, targets, SIZE)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    exact = net.losses(tuple(each.float() for each in given), targets, SIZE)
    assert all(torch.equal(losses[name], exact[name]) for name in exact)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
def test_order_of_images_and_of_boxes_does_not_matter(kind: type[Head]) -> None:
    torch.manual_seed(0)
    targets = random_targets(3)
    given = tuple(torch.randn_like(each) for each in zeros(kind, images=3))
    turned = [{key: value.flip(0) for key, value in each.items()} for each in reversed(targets)]
    one, other = (
        head(kind).losses(maps, order, SIZE)
        for maps, order in ((given, targets), (tuple(each.flip(0) for each in given), turned))
    )
    for name, loss in one.items():
        torch.testing.assert_close(loss, other[name])


# -- bad targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"found 0 targets for 1 images; expected a list of one dict"),
        (target(), r"found a dict for 1 images"),
        ([{"boxes": torch.zeros(0, 4)}], r"targets\[0\] has no tensor 'labels'"),
        (["boxes"], r"targets\[0\] has no tensor 'boxes'"),
        ([{**target(), "boxes": torch.zeros(0)}], r"targets\[0\]\['boxes'\] is torch.float32 of shape \[0\]"),
        ([{**target(), "boxes": torch.zeros(0, 4, dtype=torch.int64)}], r"is torch.int64 of shape"),
        (
            [{**target([0, 0, 1, 1]), "labels": torch.zeros(2, dtype=torch.int64)}],
            r"\['labels'\] is .* \[2\]; .* \[1\]",
        ),
        ([{**target([0, 0, 1, 1]), "labels": torch.zeros(1)}], r"\['labels'\] is torch.float32"),
        ([{**target([0, 0, 1, 1]), "ignore": torch.zeros(1)}], r"\['ignore'\] is torch.float32"),
        ([target([0, 0, 1, 1], [5, 0, 4, 1])], r"\['boxes'\]\[1\] is \[5.0, 0.0, 4.0, 1.0\]; expected finite corners"),
        ([target([0, 0, math.nan, 1])], r"\['boxes'\]\[0\] is \[0.0, 0.0, nan, 1.0\]"),
        ([target([0, 0, 1, 1], labels=[3])], r"\['labels'\]\[0\] is 3; the detector has classes 0 to 2"),
        ([target([0, 0, 1, 1], labels=[-1])], r"\['labels'\]\[0\] is -1"),
    ],
)
def test_bad_targets_are_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        head(YoloHead).losses(zeros(YoloHead), given, SIZE)


@pytest.mark.parametrize(
    ("strides", "shapes", "classes", "message"),
    [
        (STRIDES, SHAPES, 0, "num_classes is 0"),
        (STRIDES, SHAPES, True, "num_classes is True"),
        (STRIDES, (SHAPES[0], SHAPES[1][:1]), 2, r"the levels have \[2, 1\] anchors"),
        (STRIDES, SHAPES[:1], 2, r"\[2\] anchors, and there are 2 strides"),
        ((), (), 2, "expected the same number"),
    ],
)
@pytest.mark.parametrize("kind", [YoloHead, SSDLiteHead])
def test_bad_settings_of_heads_are_refused(
    kind: type[Any], strides: Any, shapes: Any, classes: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind((4, 6), strides, shapes, classes)


def test_heads_begin_with_small_predictions_and_few_boxes() -> None:
    for kind in (YoloHead, SSDLiteHead):
        assert all(each.detach().abs().max() < 5 for each in head(kind)(features(1)))
    fine = head(YoloHead)(features(1))[0].view(2, 5 + CLASSES, 8, 8)
    assert fine[:, 4].sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


def test_a_box_that_no_anchor_overlaps_is_given_to_none() -> None:
    priors = torch.tensor([[4.0, 4.0, 8.0, 8.0], [36.0, 36.0, 8.0, 8.0]])
    boxes = torch.tensor([[40.0, 40, 40, 40], [34, 34, 40, 40]])
    batch = collate([{"boxes": boxes, "labels": torch.tensor([0, 0])}], 1, 1, torch.device("cpu"))
    assert ssd_losses.assign(batch, priors).positive.tolist() == [[False, True]]
