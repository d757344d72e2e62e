"""From a name to a detector: the zoo's, or a function in the user's own file; and what its weights start from."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.random import set_seed
from torch import nn
from torch.random import fork_rng

from netaug_fx.errors import CheckpointError, InputError, NetAugError
from netaug_fx.models import detection as zoo
from netaug_fx.step import total_loss
from netaug_fx.training.checkpoint import load_weights, put_weights
from netaug_fx.training.detection.detect_config import AnswerConfig, DetectConfig
from netaug_fx.training.detection.detection_task import DetectionTask
from netaug_fx.training.detection.objective import detections
from netaug_fx.training.model_loading import load_model
from netaug_fx.training.settings import ModelConfig


def first_detector(config: DetectConfig, task: DetectionTask) -> nn.Module:
    """The detector that the settings name, with its first weights, which the seed alone decides.

    Raises:
        InputError: there is none of that name, or it cannot be built.
        CheckpointError: its weights are neither a detector's nor a classifier's that fits.
    """
    set_seed(config.seed)
    net = build_detector(config.model, task)
    if config.model.weights is not None:
        with fork_rng(devices=[]):  # looking for the outputs makes another net
            start_from(net, config.model, task)
    return net


def build_detector(model: ModelConfig, task: DetectionTask, *, classes: int | None = None) -> nn.Module:
    """The detector that the settings name, untrained.

    Raises:
        InputError: there is none of that name, or it cannot be built.
    """
    count = classes or len(task.classes)
    known = model.name in zoo.names()
    if not known and ".py" not in model.name:
        close = difflib.get_close_matches(model.name, zoo.names(), n=2, cutoff=0.5) or zoo.names()
        raise InputError(
            f"--model {model.name}: there is no detector of that name, such as {' or '.join(close[:2])}. Give one of "
            f"{', '.join(zoo.names())}, or path/to/file.py:function."
        )
    return load_model(model.name, num_classes=count, in_channels=task.channels, kwargs=model.kwargs)


def start_from(net: nn.Module, model: ModelConfig, task: DetectionTask) -> None:
    """Loads ``model.weights`` into ``net``, in place: those of a detector, or of a classifier into its backbone.

    Outputs keep their own first weights where the file's detector has other classes.

    Raises:
        CheckpointError: the file cannot be read, or is of neither.
    """
    assert model.weights is not None
    file = Path(model.weights)
    tensors, facts = load_weights(file)
    own = net.state_dict()
    if own.keys() <= tensors.keys():
        known = facts.get("classes")
        shapes = [getattr(tensors[name], "shape", None) == getattr(value, "shape", None) for name, value in own.items()]
        other = known != list(task.classes) if known is not None else not all(shapes)
        if other:
            outputs = _outputs(own, model, task)
            tensors = {name: own[name] if name in outputs else value for name, value in tensors.items()}
        put_weights(net, tensors, file, model.name)
        return
    backbone = getattr(net, "backbone", None)
    if not isinstance(backbone, zoo.Backbone):
        raise CheckpointError(
            f"{file} holds no weights of {model.name}. A classifier's can be loaded into a detector whose `backbone` "
            "is a netaug_fx.models.detection.Backbone; load others in the function that builds the detector."
        )
    try:
        zoo.load_classifier_(backbone, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{file}, for the backbone of {model.name}: {error}") from None


def _outputs(own: dict[str, Any], model: ModelConfig, task: DetectionTask) -> set[str]:
    """Names of the tensors whose shape follows the number of classes."""
    other = build_detector(model, task, classes=len(task.classes) + 1).state_dict()
    return {name for name, value in own.items() if name in other and value.shape != other[name].shape}


def check_detector(net: nn.Module, task: DetectionTask, answers: AnswerConfig, name: str) -> None:
    """Runs a detector as training and validation will, on two images.

    Raises:
        InputError: it cannot take them, or gives neither losses nor detections.
    """
    images = task.example(2)
    images = torch.cat([images, images])[:2]  # no training batch has one image, which norms could not take
    side = task.image_size
    boxes = torch.tensor([[side / 4, side / 4, 3 * side / 4, 3 * side / 4]])
    one = {"boxes": boxes, "labels": torch.zeros(1, dtype=torch.int64), "ignore": torch.zeros(1, dtype=torch.bool)}
    none = {key: value[:0] for key, value in one.items()}
    was_training = net.training
    buffers = {key: value.clone() for key, value in net.named_buffers()}
    try:
        with fork_rng(devices=[]):
            loss = total_loss(net.train()(images, [one, none]))
            with torch.no_grad():
                detections(net, net.eval()(images), images, answers, len(task.classes))
    except NetAugError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise InputError(
            f"model {name} cannot take images of shape {list(images.shape)} and their targets, one of them without "
            f"boxes: {type(error).__name__}: {error}. A detector takes images, and images with targets; see "
            "docs/detection.md. Give another --image-size, or a model for these channels."
        ) from error
    finally:
        net.train(was_training)
        for key, buffer in net.named_buffers():
            buffer.copy_(buffers[key])
    if not bool(torch.isfinite(loss)):
        raise InputError(
            f"model {name}: the loss of two images, one of them without boxes, is {float(loss)} before any training. "
            "Divide by the number of boxes only where there are some, and look at the first weights"
        )
