"""Starting from trained weights: the same net, with a new classifier where the classes are others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from netaug_fx.training.checkpoint import load_weights, put_weights
from netaug_fx.training.model_loading import load_model
from netaug_fx.training.settings import ModelConfig


def start_from(net: nn.Module, model: ModelConfig, classes: Sequence[str], in_channels: int) -> bool:
    """Loads ``model.weights`` into ``net``, in place.

    The classifier keeps its own first weights unless the file was trained on the same classes, or tells of none and
    has as many.

    Returns:
        Whether the classifier is new.

    Raises:
        CheckpointError: the file cannot be read, or is another net's beyond the classifier.
    """
    assert model.weights is not None
    file = Path(model.weights)
    tensors, facts = load_weights(file)
    own = net.state_dict()
    head = classifier_tensors(own, model, len(classes), in_channels)
    known = facts.get("classes")
    if known is None:
        same = all(name in tensors and tensors[name].shape == own[name].shape for name in head)
    else:
        same = list(known) == list(classes)
    if not same:
        tensors = {name: value for name, value in tensors.items() if name not in head}
        tensors |= {name: own[name] for name in head}
    put_weights(net, tensors, file, model.name)
    return bool(head) and not same


def classifier_tensors(own: dict[str, object], model: ModelConfig, classes: int, in_channels: int) -> set[str]:
    """Names of the tensors whose shape follows the number of classes."""
    other = load_model(model.name, num_classes=classes + 1, in_channels=in_channels, kwargs=model.kwargs).state_dict()
    return {
        name
        for name, value in own.items()
        if name not in other or getattr(value, "shape", None) != getattr(other[name], "shape", None)
    }
