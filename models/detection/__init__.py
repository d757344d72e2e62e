"""Detectors: the zoo's tiny nets with a feature pyramid and a YOLOv3-style or an SSDLite-style head."""

from netaug_fx.models.detection import presets
from netaug_fx.models.detection.backbone import Backbone, load_classifier_
from netaug_fx.models.detection.detector import Decoded, Detection, Detector, select
from netaug_fx.models.detection.heads import Head, Predictions, SSDLiteHead, YoloHead
from netaug_fx.models.detection.neck import PyramidNeck
from netaug_fx.models.detection.registry import create, names, register
from netaug_fx.models.detection.targets import Target

__all__ = [
    "Backbone",
    "Decoded",
    "Detection",
    "Detector",
    "Head",
    "Predictions",
    "PyramidNeck",
    "SSDLiteHead",
    "Target",
    "YoloHead",
    "create",
    "load_classifier_",
    "names",
    "presets",
    "register",
    "select",
]
