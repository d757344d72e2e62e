"""A trained net that teaches the tiny one beside the labels (knowledge distillation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netaug_fx.distillation import Distillation
from netaug_fx.errors import InputError
from netaug_fx.training.checkpoint import load_weights, put_weights
from netaug_fx.training.data import Task
from netaug_fx.training.model_loading import check_outputs, load_cut, load_model
from netaug_fx.training.settings import DistillConfig


class Teacher(nn.Module):
    """A frozen net in evaluation mode, given images as it was trained on, and the loss of a student beside it."""

    def __init__(self, net: nn.Module, distillation: Distillation, task: Task, facts: Mapping[str, Any]) -> None:
        """Args:
        net: The trained net.
        distillation: What its output adds to a student's loss.
        task: How the student's images are normalised.
        facts: ``mean``, ``std`` and ``image_size`` of the teacher's images, where they are known.
        """
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.net = net.requires_grad_(False)
        self.distillation = distillation
        self.size: int | None = facts.get("image_size")
        mean, std = (torch.tensor(facts.get(name) or own) for name, own in (("mean", task.mean), ("std", task.std)))
        own_mean, own_std = torch.tensor(task.mean), torch.tensor(task.std)
        self.register_buffer("scale", (own_std / std).view(-1, 1, 1))
        self.register_buffer("shift", ((own_mean - mean) / std).view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """The teacher's output for images that are normalised and sized for the student."""
        images = images * self.scale + self.shift
        if self.size is not None and self.size != images.shape[-1]:
            side = [self.size, self.size]
            images = F.interpolate(images, size=side, mode="bilinear", align_corners=False, antialias=True)
        return self.net(images)

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """What the student's logits for a batch add to its loss."""
        with torch.no_grad():
            taught = self(images)
        return self.distillation(logits, taught.to(logits.dtype))


def load_teacher(config: DistillConfig, task: Task, device: torch.device) -> Teacher | None:
    """The teacher that the settings name, with its weights, on ``device``.

    Raises:
        InputError: there is no such net, nothing says where its weights come from, it takes other images or has other
            classes, or its weights are another net's.
    """
    if config.teacher is None:
        return None
    kwargs = dict(config.teacher_kwargs)
    if config.teacher_weights is not None:
        net, facts = _from_file(config.teacher, Path(config.teacher_weights), kwargs, task)
    elif kwargs.get("pretrained"):
        # Asked for another number of classes, it would come with a classifier that was never trained.
        net = load_model(config.teacher, in_channels=task.channels, kwargs=kwargs)
        facts = _of_timm(net)
    else:
        raise InputError(
            f"the teacher {config.teacher} would be untrained: give its weights (--teacher-weights FILE), or let the "
            "function that builds it load some (distill.teacher_kwargs: {pretrained: true})"
        )
    teacher = Teacher(net, Distillation(config.weight, config.temperature), task, facts)
    check_outputs(teacher, task.example(), len(task.classes), f"{config.teacher} (the teacher)")
    return teacher.to(device)


def _from_file(name: str, file: Path, kwargs: dict[str, Any], task: Task) -> tuple[nn.Module, dict[str, Any]]:
    tensors, facts = load_weights(file)
    if facts.get("model") == name:
        kwargs = facts.get("model_kwargs", {}) | kwargs
    _same_classes(facts.get("classes"), task, file)
    side = facts.get("image_size") or task.image_size
    images = torch.zeros(2, task.channels, side, side)
    sizes = {"num_classes": len(task.classes), "in_channels": task.channels}
    net = load_cut(name, facts.get("cuts", []), images, kwargs=kwargs, **sizes)
    put_weights(net, tensors, file, name, "Give the net it was saved from with --teacher.")
    return net, facts


def _of_timm(net: nn.Module) -> dict[str, Any]:
    """How timm's nets want their images."""
    config = getattr(net, "default_cfg", None)
    if not isinstance(config, Mapping):
        return {}
    size = config.get("input_size")
    return {
        "mean": config.get("mean"),
        "std": config.get("std"),
        "image_size": size[-1] if size else None,
    }


def _same_classes(classes: Sequence[str] | None, task: Task, file: Path) -> None:
    if classes is not None and list(classes) != list(task.classes):
        raise InputError(
            f"--teacher-weights {file}: it was trained on the classes {', '.join(classes[:5])}..., the data has "
            f"{', '.join(task.classes[:5])}...; a teacher must know the same classes in the same order"
        )
