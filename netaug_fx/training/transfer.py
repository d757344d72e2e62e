"""Starting from trained weights: the same net, with a new classifier where the classes are others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from netaug_fx.training.checkpoint import load_weights, put_weights
from netaug_fx.training.data import Task
from netaug_fx.training.model_loading import load_cut
from netaug_fx.training.settings import ModelConfig


def cuts_of(model: ModelConfig) -> list[dict[str, Any]]:
    """How the net whose weights the settings name was cut out of its model; empty for a whole one.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return [] if model.weights is None else load_weights(Path(model.weights))[1].get("cuts", [])


def untrained_net(model: ModelConfig, task: Task, *, classes: int | None = None) -> nn.Module:
    """The net that the settings name, of the shape that its weights need, with first weights."""
    return load_cut(
        model.name,
        cuts_of(model),
        task.example(),
        num_classes=classes or len(task.classes),
        in_channels=task.channels,
        kwargs=model.kwargs,
    )


def start_from(net: nn.Module, model: ModelConfig, task: Task) -> bool:
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
    head = classifier_tensors(own, model, task)
    known = facts.get("classes")
    if known is None:
        same = all(name in tensors and tensors[name].shape == own[name].shape for name in head)
    else:
        same = list(known) == list(task.classes)
    if not same:
        tensors = {name: value for name, value in tensors.items() if name not in head}
        tensors |= {name: own[name] for name in head}
    put_weights(net, tensors, file, model.name, "Give the model it was saved from with --model.")
    return bool(head) and not same


def classifier_tensors(own: dict[str, object], model: ModelConfig, task: Task) -> set[str]:
    """Names of the tensors whose shape follows the number of classes."""
    other = untrained_net(model, task, classes=len(task.classes) + 1).state_dict()
    return {
        name
        for name, value in own.items()
        if name not in other or getattr(value, "shape", None) != getattr(other[name], "shape", None)
    }
