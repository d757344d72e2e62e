"""Names of the detectors, kept apart from those of the classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from netaug_fx.models.detection.detector import Detector
from netaug_fx.models.registry import Registry

Builder = TypeVar("Builder", bound=Callable[..., Detector])

DETECTORS: Registry[Detector] = Registry("detector")


def register(builder: Builder) -> Builder:
    """Decorator: make a function that builds a detector known under the function's own name.

    Raises:
        InputError: another function already has that name.
    """
    DETECTORS.register(builder)
    return builder


def names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    return DETECTORS.names()


def create(name: str, *, num_classes: int = 20, in_channels: int | None = None, **kwargs: object) -> Detector:
    """Build the detector registered under ``name``.

    Args:
        name: one of :func:`names`.
        num_classes: classes, background not among them; by default as many as Pascal VOC has.
        in_channels: channels of the images; None leaves them to the detector (3, for scenes 1).
        kwargs: other arguments of the function that builds it.

    Raises:
        InputError: the name is unknown (the message gives the nearest ones), or an argument is unknown or out of range.
    """
    given = {} if in_channels is None else {"in_channels": in_channels}
    return DETECTORS.create(name, num_classes=num_classes, **given, **kwargs)
