"""A trained net that teaches the tiny one beside the labels (knowledge distillation)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from netaug_fx.distillation import Distillation
from netaug_fx.errors import InputError
from netaug_fx.training.checkpoint import load_weights, put_weights
from netaug_fx.training.data import Task
from netaug_fx.training.model_loading import check_outputs, load_model
from netaug_fx.training.settings import DistillConfig


class Teacher:
    """A frozen net in evaluation mode, and the loss of a student beside it."""

    def __init__(self, net: nn.Module, distillation: Distillation) -> None:
        self.net = net.eval().requires_grad_(False)
        self.distillation = distillation

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """What the student's logits for a batch add to its loss."""
        with torch.no_grad():
            taught = self.net(images)
        return self.distillation(logits, taught.to(logits.dtype))


def load_teacher(config: DistillConfig, task: Task, device: torch.device) -> Teacher | None:
    """The teacher that the settings name, with its weights, on ``device``.

    Raises:
        InputError: there is no such net, it takes other images or has other classes, or its weights are another net's.
    """
    if config.teacher is None:
        return None
    name, tensors = config.teacher, None
    kwargs = dict(config.teacher_kwargs)
    if config.teacher_weights is not None:
        file = Path(config.teacher_weights)
        tensors, facts = load_weights(file)
        if facts.get("model") == name:
            kwargs = facts.get("model_kwargs", {}) | kwargs
        _same_classes(facts.get("classes"), task, file)
    net = load_model(name, num_classes=len(task.classes), in_channels=task.channels, kwargs=kwargs)
    if tensors is not None:
        put_weights(net, tensors, file, name)
    check_outputs(net, task.example(), len(task.classes), f"{name} (the teacher)")
    return Teacher(net.to(device), Distillation(config.weight, config.temperature))


def _same_classes(classes: list[str] | None, task: Task, file: Path) -> None:
    if classes is not None and list(classes) != list(task.classes):
        raise InputError(
            f"--teacher-weights {file}: it was trained on the classes {', '.join(classes[:5])}..., the data has "
            f"{', '.join(task.classes[:5])}...; a teacher must know the same classes in the same order"
        )
