"""The detectors by name: the paper's five targets with two heads each, and very small ones for rendered scenes.

All have three levels at strides 8, 16 and 32 and the pyramid of `PyramidNeck`; the scenes' have two, at 8 and 16. MACs
are those of the raw predictions with 20 classes, for one image of the size that the backbone was designed for.
"""

from __future__ import annotations

from netaug_fx.models.detection.anchors import Shapes, ssd_shapes, yolo_shapes
from netaug_fx.models.detection.backbone import Backbone
from netaug_fx.models.detection.detector import Detector
from netaug_fx.models.detection.heads import SSDLiteHead, YoloHead
from netaug_fx.models.detection.neck import PyramidNeck
from netaug_fx.models.detection.registry import register
from netaug_fx.models.inverted import InvertedResidualNet
from netaug_fx.models.mcunet import mcunet
from netaug_fx.models.mobilenet_v2 import mobilenet_v2_035, mobilenet_v2_tiny
from netaug_fx.models.mobilenet_v3 import mobilenet_v3_035
from netaug_fx.models.proxylessnas import proxylessnas_035
from netaug_fx.models.scenes import scenes_net

_WIDTHS = (32, 48, 64)

_SCENES_STRIDES = (8, 16)
_SCENES_WIDTHS = (24, 32)
# Characters are taller than wide, and up to half as high as the image.
_SCENES_SHAPES: Shapes = (
    ((0.08, 0.11), (0.12, 0.17), (0.20, 0.17)),
    ((0.17, 0.25), (0.28, 0.36), (0.40, 0.50)),
)


def _yolo(net: InvertedResidualNet, num_classes: int) -> Detector:
    backbone = Backbone(net)
    neck = PyramidNeck(backbone.channels, backbone.strides, _WIDTHS)
    return Detector(backbone, neck, YoloHead(neck.channels, backbone.strides, yolo_shapes(), num_classes))


def _ssdlite(net: InvertedResidualNet, num_classes: int) -> Detector:
    backbone = Backbone(net)
    neck = PyramidNeck(backbone.channels, backbone.strides, _WIDTHS)
    shapes = ssd_shapes(len(backbone.strides))
    return Detector(backbone, neck, SSDLiteHead(neck.channels, backbone.strides, shapes, num_classes))


@register
def yolo_mobilenet_v2_tiny(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MobileNetV2-Tiny with the YOLOv3-style head: 25.830M MACs at 144x144.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _yolo(mobilenet_v2_tiny(in_channels=in_channels), num_classes)


@register
def yolo_mobilenet_v2_035(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MobileNetV2 w0.35 with the YOLOv3-style head: 30.848M MACs at 160x160.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _yolo(mobilenet_v2_035(in_channels=in_channels), num_classes)


@register
def yolo_mobilenet_v3_035(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MobileNetV3-Large w0.35 with the YOLOv3-style head: 22.101M MACs at 160x160.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _yolo(mobilenet_v3_035(in_channels=in_channels), num_classes)


@register
def yolo_proxylessnas_035(*, num_classes: int, in_channels: int = 3) -> Detector:
    """ProxylessNAS-Mobile w0.35 with the YOLOv3-style head: 35.690M MACs at 160x160.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _yolo(proxylessnas_035(in_channels=in_channels), num_classes)


@register
def yolo_mcunet(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MCUNet with the YOLOv3-style head: 87.946M MACs at 176x176.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _yolo(mcunet(in_channels=in_channels), num_classes)


@register
def ssdlite_mobilenet_v2_tiny(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MobileNetV2-Tiny with the SSDLite-style head: 25.749M MACs at 144x144.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _ssdlite(mobilenet_v2_tiny(in_channels=in_channels), num_classes)


@register
def ssdlite_mobilenet_v2_035(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MobileNetV2 w0.35 with the SSDLite-style head: 30.758M MACs at 160x160.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _ssdlite(mobilenet_v2_035(in_channels=in_channels), num_classes)


@register
def ssdlite_mobilenet_v3_035(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MobileNetV3-Large w0.35 with the SSDLite-style head: 22.011M MACs at 160x160.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _ssdlite(mobilenet_v3_035(in_channels=in_channels), num_classes)


@register
def ssdlite_proxylessnas_035(*, num_classes: int, in_channels: int = 3) -> Detector:
    """ProxylessNAS-Mobile w0.35 with the SSDLite-style head: 35.600M MACs at 160x160.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _ssdlite(proxylessnas_035(in_channels=in_channels), num_classes)


@register
def ssdlite_mcunet(*, num_classes: int, in_channels: int = 3) -> Detector:
    """MCUNet with the SSDLite-style head: 87.826M MACs at 176x176.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    return _ssdlite(mcunet(in_channels=in_channels), num_classes)


@register
def yolo_scenes(*, num_classes: int, in_channels: int = 1) -> Detector:
    """``scenes_net`` with the YOLOv3-style head, for scenes of a few characters: 2.957M MACs at 96x96.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    backbone = Backbone(scenes_net(in_channels=in_channels), _SCENES_STRIDES)
    neck = PyramidNeck(backbone.channels, backbone.strides, _SCENES_WIDTHS)
    return Detector(backbone, neck, YoloHead(neck.channels, backbone.strides, _SCENES_SHAPES, num_classes))


@register
def ssdlite_scenes(*, num_classes: int, in_channels: int = 1) -> Detector:
    """``scenes_net`` with the SSDLite-style head, for scenes of a few characters: 2.994M MACs at 96x96.

    Raises:
        InputError: ``num_classes`` or ``in_channels`` below 1.
    """
    backbone = Backbone(scenes_net(in_channels=in_channels), _SCENES_STRIDES)
    neck = PyramidNeck(backbone.channels, backbone.strides, _SCENES_WIDTHS)
    return Detector(
        backbone,
        neck,
        SSDLiteHead(neck.channels, backbone.strides, ssd_shapes(len(_SCENES_STRIDES), 0.12, 0.4), num_classes),
    )
