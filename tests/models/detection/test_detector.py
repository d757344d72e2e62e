"""Detectors by name, their costs, decoding and what is reported."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from netaug_fx import models
from netaug_fx.errors import InputError
from netaug_fx.models import detection
from netaug_fx.models.detection import anchors, detector, presets
from netaug_fx.passes.macs import count
from tests.models.detection.rendered import CLASSES, SIDE, scenes, small

# MACs and parameters at the natural size with 20 classes.
COSTS = {
    "ssdlite_mcunet": (87_826_224, 626_148),
    "ssdlite_mobilenet_v2_035": (30_758_000, 295_852),
    "ssdlite_mobilenet_v2_tiny": (25_748_688, 295_852),
    "ssdlite_mobilenet_v3_035": (22_011_208, 420_436),
    "ssdlite_proxylessnas_035": (35_600_000, 400_068),
    "ssdlite_scenes": (2_994_048, 29_536),
    "yolo_mcunet": (87_945_680, 628_601),
    "yolo_mobilenet_v2_035": (30_847_600, 298_305),
    "yolo_mobilenet_v2_tiny": (25_830_384, 298_305),
    "yolo_mobilenet_v3_035": (22_100_808, 422_889),
    "yolo_proxylessnas_035": (35_689_600, 402_521),
    "yolo_scenes": (2_957_184, 29_182),
}
README = Path(__file__).parents[3] / "models" / "README.md"


def test_the_registry_holds_detectors_and_no_classifiers() -> None:
    assert set(detection.names()) == set(COSTS)
    assert list(detection.names()) == sorted(detection.names())
    assert not set(detection.names()) & set(models.names())


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_as_stated(name: str) -> None:
    net = detection.create(name, num_classes=20)
    counted = count(net)
    assert (counted.macs, counted.params) == COSTS[name]
    channels, height, width = net.example_input_shape
    assert (channels, height) == (1 if name.endswith("scenes") else 3, width)
    macs = f"{counted.macs / 1e6:.3f}M"
    text = getattr(presets, name).__doc__
    assert re.search(rf"{re.escape(macs)} MACs at {height}x{height}", text), text
    assert f"| `{name}` | {height} | {macs} | {counted.params:,} |" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["yolo_scenes", "ssdlite_scenes", "yolo_mobilenet_v3_035", "ssdlite_mcunet"])
@pytest.mark.parametrize("size", [(64, 64), (97, 70)])
def test_predictions_losses_and_detections_at_any_size(name: str, size: tuple[int, int]) -> None:
    net = small(name, channels=1).eval()
    images = torch.randn(2, 1, *size)
    predictions = net(images)
    assert isinstance(predictions, tuple)
    boxes, scores = net.decode(predictions, size)
    cells = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in net.backbone.strides)
    rows = cells * net.head.anchors.shape[1]
    assert boxes.shape == (2, rows, 4)
    assert scores.shape == (2, rows, CLASSES)
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= 1
    assert float(boxes.min()) >= 0
    assert float(boxes[..., 0::2].max()) <= size[1]
    assert float(boxes[..., 1::2].max()) <= size[0]
    targets = [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([0])}] * 2
    losses = net(images, targets)
    assert isinstance(losses, dict)
    assert all(value.shape == () and value.isfinite() for value in losses.values())
    found = net.detect(predictions, size, score_threshold=0.001, limit=7)
    assert len(found) == 2
    for each in found:
        assert set(each) == {"boxes", "scores", "labels"}
        assert each["boxes"].shape == (len(each["scores"]), 4)
        assert each["labels"].dtype == torch.int64
        assert not each["scores"].requires_grad
        assert len(each["scores"]) <= 7


def test_zeros_decode_to_the_anchors() -> None:
    for name in ("yolo_scenes", "ssdlite_scenes"):
        net = detection.create(name, num_classes=2)
        zeros = tuple(torch.zeros_like(each) for each in net(torch.zeros(2, 1, 64, 96)))
        boxes, scores = net.decode(zeros, (64, 96))
        # The first anchor at row 2 and column 3 of the fine map, of 8 rows and 12 columns.
        width, height = (net.head.anchors[0, 0] * anchors.side_of((64, 96))).tolist()
        expected = [28 - width / 2, 20 - height / 2, 28 + width / 2, 20 + height / 2]
        assert boxes[1, 2 * 12 + 3].tolist() == pytest.approx(expected)
        assert scores[1, 0].tolist() == pytest.approx([0.25] * 2 if name == "yolo_scenes" else [1 / 3] * 2)


def test_a_yolo_prediction_decodes_by_the_papers_equations() -> None:
    net = detection.create("yolo_scenes", num_classes=2)
    raw = [torch.zeros_like(each) for each in net(torch.zeros(1, 1, 64, 64))]
    fine = raw[0].view(1, 3, 7, 8, 8)
    fine[0, 1, :, 2, 3] = torch.tensor([2.0, -1.0, 0.5, -0.5, 3.0, 1.0, -1.0])
    boxes, scores = net.decode(tuple(raw), (64, 64))
    row = 64 + 2 * 8 + 3
    sigmoid = torch.tensor([2.0, -1.0, 3.0, 1.0, -1.0]).sigmoid()
    width, height = (net.head.anchors[0, 1] * 64 * torch.tensor([0.5, -0.5]).exp()).tolist()
    x, y = (3 + float(sigmoid[0])) * 8, (2 + float(sigmoid[1])) * 8
    assert boxes[0, row].tolist() == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert scores[0, row].tolist() == pytest.approx((sigmoid[2] * sigmoid[3:]).tolist())


def test_the_least_squares_of_anchors_cover_what_lies_between_their_scales() -> None:
    shapes = torch.tensor(anchors.ssd_shapes(3))
    sides = torch.linspace(0.1, 0.95, 50)[:, None]
    squares = shapes[..., 0][shapes[..., 0] == shapes[..., 1]]
    overlaps = torch.minimum(sides, squares) ** 2 / torch.maximum(sides, squares) ** 2
    assert (overlaps.amax(1) > 0.5).all()
    assert anchors.yolo_shapes()[0][0] == (10 / 416, 13 / 416)


# -- what is reported ------------------------------------------------------------------------------


def one_image(*rows: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([[box for box, _ in rows]]), torch.tensor([[scores for _, scores in rows]])


def test_reported_are_the_best_of_each_class_in_order() -> None:
    boxes, scores = one_image(
        ([0.0, 0, 10, 10], [0.9, 0.6]),
        ([1.0, 0, 11, 10], [0.8, 0.7]),
        ([30.0, 30, 40, 40], [0.05, 0.0]),
        ([50.0, 50, 60, 60], [float("nan"), 0.3]),
    )
    (found,) = detection.select(boxes, scores)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.3])
    assert found["labels"].tolist() == [0, 1, 1]
    assert found["boxes"].tolist() == [[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]
    (fewer,) = detection.select(boxes, scores, limit=1, iou_threshold=0.9)
    assert fewer["scores"].tolist() == pytest.approx([0.9])
    (more,) = detection.select(boxes, scores, iou_threshold=0.9, score_threshold=0.01)
    assert len(more["scores"]) == 6


def test_nothing_found_is_an_empty_detection() -> None:
    found = detection.select(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    assert [{key: tuple(value.shape) for key, value in each.items()} for each in found] == [
        {"boxes": (0, 4), "scores": (0,), "labels": (0,)}
    ] * 2


def test_bad_arguments_of_select_are_refused() -> None:
    with pytest.raises(InputError, match=r"boxes have shape \[2, 3, 4\] and scores \[2, 4, 5\]"):
        detection.select(torch.zeros(2, 3, 4), torch.zeros(2, 4, 5))
    with pytest.raises(InputError, match="limit is 0"):
        detection.select(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), limit=0)


# -- names -----------------------------------------------------------------------------------------


def test_unknown_names_and_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"no detector is named 'yolo_scene'\. Did you mean 'yolo_scenes'"):
        detection.create("yolo_scene", num_classes=2)
    with pytest.raises(InputError, match="num_classes is 0"):
        detection.create("yolo_scenes", num_classes=0)
    with pytest.raises(InputError, match="in_channels is 0"):
        detection.create("yolo_mcunet", num_classes=2, in_channels=0)
    with pytest.raises(InputError, match="a detector named 'yolo_scenes' is already registered"):
        detection.register(presets.yolo_scenes)


def test_pyramids_need_as_many_widths_as_maps() -> None:
    with pytest.raises(InputError, match="a pyramid of 2 feature maps, 2 strides and 3 widths"):
        detection.PyramidNeck((8, 16), (8, 16), (4, 4, 4))


def test_state_dict_round_trip() -> None:
    net, images = small("ssdlite_scenes").eval(), scenes()[0]
    torch.manual_seed(1)
    other = detection.create("ssdlite_scenes", num_classes=CLASSES).eval()
    other.load_state_dict(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net(images), other(images), strict=True))
    assert images.shape[-1] == SIDE


def test_the_example_in_the_documentation_holds() -> None:
    result = doctest.testmod(detector)
    assert result.attempted > 0
    assert result.failed == 0
