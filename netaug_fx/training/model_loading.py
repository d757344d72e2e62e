"""From a name on the command line to a net: the zoo, timm, or a function in the user's own file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.random import fork_rng

import netaug_fx
from netaug_fx import models
from netaug_fx.errors import InputError, NetAugError
from netaug_fx.models import detection
from netaug_fx.passes.copying import copy_model


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the net that ``name`` stands for.

    Args:
        name: zoo name (of a classifier or a detector), ``timm:NAME``, or ``path/to/file.py:function``. A function in a
            file is given those of ``num_classes`` and ``in_channels`` that it has parameters for.
        num_classes: outputs of the classifier; None leaves them to the net.
        in_channels: channels of the images; None leaves them to the net.
        kwargs: more arguments for the function that builds the net.

    Raises:
        InputError: no such name, file or function; or what it gives is not a ``torch.nn.Module``.
    """
    extra = dict(kwargs or {})
    in_channels_name = "in_chans" if name.startswith("timm:") else "in_channels"
    asked = {"num_classes": num_classes, in_channels_name: in_channels}
    offered = {key: value for key, value in asked.items() if value is not None}
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), {**offered, **extra})
    if ".py:" in name:
        return _from_file(name, offered, extra)
    if name.endswith(".py"):
        raise InputError(f"--model {name}: add the function that builds the net, as in {name}:make_net")
    meant_as_detector = name not in models.names() and name.startswith(("yolo_", "ssdlite_"))
    if name in detection.names() or meant_as_detector:  # a misspelt one is answered with the detectors' names
        return detection.create(name, **{**offered, **extra})
    return models.create(name, **{**offered, **extra})


def load_cut(
    name: str,
    cuts: Sequence[Mapping[str, Any]],
    images: Tensor | None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The net that ``name`` stands for, cut as ``netaug-fx evolve`` cut the one whose weights it is to get.

    Args:
        name, num_classes, in_channels, kwargs: As for ``load_model``.
        cuts: ``keep`` and ``pin`` of each cut, one after the other; none leaves the net as it is.
        images: Of the shape that the net takes; None leaves the search to ``evolve``.

    Raises:
        NetAugError: what ``load_model`` and ``evolve`` raise.
    """
    net = load_model(name, num_classes=num_classes, in_channels=in_channels, kwargs=kwargs)
    for cut in cuts:
        net = netaug_fx.extract(netaug_fx.evolve(net, cut["keep"], example_inputs=images, pin=cut["pin"]))
    return net


def natural_input_shape(net: nn.Module) -> tuple[int, ...] | None:
    """``(channels, height, width)`` that a net was made for, where it says so.

    The zoo's nets have ``example_input_shape``, timm's have ``default_cfg``.
    """
    shape = getattr(net, "example_input_shape", None)
    config = getattr(net, "default_cfg", None)
    if shape is None and isinstance(config, Mapping):
        shape = config.get("input_size")
    return tuple(int(size) for size in shape) if isinstance(shape, tuple | list) else None


def check_outputs(model: nn.Module, images: Tensor, classes: int, name: str) -> None:
    """Run ``model`` once in eval mode and compare its output with the number of classes.

    Raises:
        InputError: the net cannot take the images, or does not give one tensor ``[batch, classes]``.
    """
    was_training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"model {name} cannot take images of shape {list(images.shape)}: {error}. "
            "Give another --image-size, or a model for these channels."
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(output, Tensor):
        if name in detection.names():
            raise InputError(
                f"model {name} is a detector, and these images have no boxes. Train it with netaug-fx train --task "
                "detect (--weights FILE goes on from trained ones)"
            )
        raise InputError(
            f"model {name} returns a {type(output).__name__}; expected one tensor of logits. "
            "Wrap it in a module that returns the logits."
        )
    if output.shape != (len(images), classes):
        raise InputError(
            f"model {name} gives an output of shape {list(output.shape)} for {len(images)} images; the data has "
            f"{classes} classes, so [{len(images)}, {classes}] was expected. Let the function take num_classes, or set "
            "it under model.kwargs in --config."
        )
    trained = _in_training(model, images)
    if trained is not None and not isinstance(trained, Tensor):
        raise InputError(
            f"model {name} returns a {type(trained).__name__} in training mode, and one tensor in evaluation mode; "
            "leave other outputs (auxiliary classifiers) away, or wrap it in a module that returns the logits alone."
        )


def _in_training(model: nn.Module, images: Tensor) -> Any:
    """What the net returns in training mode; None where it cannot take these images then. It is not changed."""
    with torch.no_grad(), fork_rng(devices=[]):
        try:
            return copy_model(model).train()(images)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None


def _from_timm(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError:
        raise InputError(f"--model timm:{name} needs timm: pip install timm") from None
    except Exception as error:  # timm imports torchvision, which fails in its own ways beside another build of torch
        raise InputError(
            f"--model timm:{name}: timm is installed, but cannot be imported ({type(error).__name__}: {error}); "
            "install a torchvision that fits this torch"
        ) from error
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise InputError(f"timm has no model {name!r}.{_did_you_mean(name, known)}")
    try:
        return _as_module(timm.create_model(name, **kwargs), f"timm:{name}")
    except TypeError as error:
        raise InputError(f"timm:{name} does not take these arguments: {error}. See model.kwargs.") from error


def _from_file(spec: str, offered: Mapping[str, Any], extra: Mapping[str, Any]) -> nn.Module:
    """Call ``function`` of ``path/to/file.py:function`` with what it has parameters for."""
    file_name, _, function_name = spec.rpartition(":")
    file = Path(file_name)
    if not file.is_file():
        raise InputError(
            f"model {spec}: there is no file {file}, seen from {Path.cwd()}. Give --model path/to/file.py:function; a "
            "run folder and a weights file name the model as the run was given it, as seen from where it was started."
        )
    module = _import_file(file)
    function = getattr(module, function_name, None)
    if isinstance(function, nn.Module):
        raise InputError(
            f"--model {spec}: {function_name} is a model; give a function that makes one, for several are made."
        )
    if not callable(function):
        own = [name for name, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        raise InputError(
            f"--model {spec}: {file} has no function {function_name!r}.{_did_you_mean(function_name, own)}"
        )
    arguments = {key: value for key, value in offered.items() if _takes(function, key)} | dict(extra)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"--model {spec} cannot be called: {error}. Give the arguments under model.kwargs in --config, or defaults."
            + (" (--num-classes and --in-channels are given to parameters of these names.)" if not offered else "")
        ) from None
    try:
        made = function(**arguments)
    except NetAugError:
        raise
    except Exception as error:
        raise InputError(f"--model {spec} fails: {type(error).__name__}: {error}. (--debug shows where.)") from error
    net = _as_module(made, spec)
    if net in _given:
        raise InputError(
            f"--model {spec} gives the same module each time it is called; make a new one in it, for several are made."
        )
    _given.add(net)
    return net


_given: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Nets that users' functions gave: arms that share one would start from each other's weights."""


def _import_file(file: Path) -> ModuleType:
    """Import a user's file under a name of its own; files beside it can be imported by it, as in a script."""
    path = file.resolve()
    name = f"netaug_fx_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:  # run once: a second run would define every class anew, and nets of both would differ
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    # Tracing and pickling look the module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(
            f"{file} cannot be imported: {type(error).__name__}: {error}. (--debug shows where.)"
        ) from error
    return module


def _takes(function: Callable[..., Any], parameter: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(item.name == parameter or item.kind is item.VAR_KEYWORD for item in parameters)


def _as_module(value: object, name: str) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise InputError(f"--model {name} gives a {type(value).__name__}; expected a torch.nn.Module.")
    return value


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" It has {', '.join(known[:10])}." if known else ""
