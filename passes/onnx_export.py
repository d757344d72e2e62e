"""ONNX: one file, batch dimension free, stable names, checked, written whole or not at all; and a way to run it.

In: a model and example inputs. Out: the path of an ``.onnx`` file that holds its weights. Built on PyTorch's
``torch.export``-based exporter, whose two silent habits are made loud here: it raises an opset it cannot give, and it
prints what went wrong instead of saying it in the exception.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from netaug_fx.atomic import atomic_path
from netaug_fx.errors import ExportError
from netaug_fx.passes.flatten import FlatModel, batched, flat_model, named_tensors, unique_names, with_batch
from netaug_fx.passes.running import seldom_collected
from netaug_fx.passes.untouched import untouched

LOWEST_OPSET = 18
_PREFIX = "model."
_LOUD = ("torch", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Capture:
    """A model captured by ``torch.export`` as a function from tensors to tensors.

    Attributes:
        program: The graph; the model's tensors have the prefix "model." in their names.
        inputs: The tensors it was captured with: the example's, with a batch of at least two where it is dynamic.
        input_names: After the forward's parameters; nested ones as "parameter_key".
        output_names: "output", "output_0", ... or the keys and fields of the dict or dataclass returned.
        dynamic: The inputs whose first dimension is the free batch.
    """

    program: ExportedProgram
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic: tuple[bool, ...]
    flat: FlatModel


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Exports the model in eval mode to one ONNX file with its weights inside, and leaves the model as it was.

    Args:
        model: Any module that ``torch.export`` can capture.
        path: The file to write; its folder is made, an existing file is replaced once the new one is complete.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. None looks for one.
        opset: The ONNX operator set wanted; None takes the exporter's own choice.
        dynamic_batch: Whether the first dimension of every input that has the batch size there is left free.

    Returns:
        ``path``. Inputs are named after the forward's parameters, outputs "output", "output_0", ... or after the
        keys of the dict (fields of the dataclass) that the forward returns.

    Raises:
        ExportError: The model cannot be captured or translated, the opset cannot be had, the result is not valid
            ONNX or is larger than the 2 GB that one file can hold.
        InputError: The inputs are no tensors, or none was found.
        OSError: The file cannot be written; a former file at ``path`` stays.
    """
    return write_onnx(capture(model, example_inputs, dynamic_batch=dynamic_batch), path, opset=opset)


def capture(model: nn.Module, example_inputs: Any = None, *, dynamic_batch: bool = True) -> Capture:
    """Captures the model's forward in eval mode with ``torch.export``; see ``export_onnx`` for arguments and errors."""
    with untouched(*([model] if isinstance(model, nn.Module) else [])):
        flat = flat_model(model, example_inputs)
        inputs = flat.inputs
        dynamic = tuple(dynamic_batch and has_batch for has_batch in batched(inputs))
        if any(dynamic) and inputs[dynamic.index(True)].shape[0] < 2:
            inputs = with_batch(inputs, 2)  # torch.export takes a size of one for a constant
        with _quiet() as said, _explained(flat, "does not run on the example inputs", said, dynamic_batch):
            output_names = _output_names(flat, inputs)
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} if is_dynamic else None for is_dynamic in dynamic)
        failed = "cannot be captured by torch.export"
        with seldom_collected(), _quiet() as said, _explained(flat, failed, said, dynamic_batch):
            program = torch.export.export(flat, inputs, dynamic_shapes=(shapes,), strict=False)
    return Capture(program, inputs, flat.input_names, output_names, dynamic, flat)


def write_onnx(
    captured: Capture, path: str | os.PathLike[str], *, opset: int | None = None, optimize: bool = True
) -> Path:
    """Translates a captured model and writes it; see ``export_onnx`` for arguments and errors.

    ``optimize=False`` leaves out the exporter's graph optimisation, nearly half of the time for a large net.
    """
    name = type(captured.flat.model).__name__
    with untouched(captured.flat.model):
        proto = _translate(captured, opset, optimize)
    given = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and given != opset:
        raise ExportError(
            f"opset={opset} cannot be had for {name}: the exporter gave {given}; "
            f"ask for {LOWEST_OPSET} to {onnx.defs.onnx_opset_version()}, or leave opset out"
        )
    _restore_names(proto)
    with atomic_path(path) as temporary:
        try:
            data: bytes = proto.SerializeToString()  # type: ignore[no-untyped-call]
            onnx.checker.check_model(data)
        except Exception as error:  # the checker's errors, and protobuf's for more than 2 GB, share no base class
            raise ExportError(f"{name}: the exported model is not a valid ONNX file: {error}") from error
        temporary.write_bytes(data)
    return Path(path)


def run_onnx(
    path: str | os.PathLike[str], inputs: Tensor | np.ndarray[Any, Any] | Sequence[Any] | Mapping[str, Any]
) -> list[np.ndarray[Any, Any]]:
    """Runs an ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        inputs: One array or tensor, several in the order of the file's inputs, or a mapping by input name.

    Returns:
        The outputs in the file's order.

    Raises:
        ExportError: ONNX Runtime cannot load the file, or the inputs do not fit it.
    """
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(  # type: ignore[attr-defined]
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        names = [entry.name for entry in session.get_inputs()]
        if isinstance(inputs, (Tensor, np.ndarray)):
            inputs = [inputs]
        if not isinstance(inputs, Mapping):
            inputs = dict(zip(names, inputs, strict=True))
        # An input that the graph does not need is no input of the file.
        feed = {key: _as_array(value) for key, value in inputs.items() if key in names}
        outputs = session.run(None, feed)
    except Exception as error:  # ONNX Runtime raises a dozen classes of its own
        raise ExportError(f"ONNX Runtime cannot run {os.fspath(path)}: {_first_lines(error)}") from error
    return [np.asarray(output) for output in outputs]


def _translate(captured: Capture, opset: int | None, optimize: bool) -> onnx.ModelProto:
    options: dict[str, Any] = {
        "dynamo": True,
        "external_data": False,
        "verbose": False,
        "optimize": optimize,
        "opset_version": opset,
        "input_names": list(captured.input_names),
        "output_names": list(captured.output_names),
    }
    _undo_in_place(captured.program)
    with _quiet() as said, seldom_collected():
        try:
            translated = torch.onnx.export(captured.program, (), **options)
        except Exception:  # other capture strategies, and the forward's own is_in_onnx_export() branches, may do
            batch = torch.export.Dim("batch", min=1)
            shapes = tuple({0: batch} if is_dynamic else None for is_dynamic in captured.dynamic)
            with _explained(captured.flat, "cannot be translated to ONNX", said, any(captured.dynamic)):
                translated = torch.onnx.export(captured.flat, captured.inputs, dynamic_shapes=(shapes,), **options)
        if translated is None:
            raise ExportError(f"{type(captured.flat.model).__name__}: the ONNX exporter returned nothing")
        proto: onnx.ModelProto = translated.model_proto
    return proto


# In-place activations on a fresh result that nothing else reads are the same as their plain forms, which the exporter
# decomposes in half the time.
_ACTIVATIONS = ("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "elu", "leaky_relu", "mish", "sigmoid")
_FRESH = (
    *(f"conv{n}d" for n in (1, 2, 3)),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
    *("batch_norm", "group_norm", "layer_norm", "linear", "add", "mul"),
)


def _undo_in_place(program: ExportedProgram) -> None:
    aten = torch.ops.aten
    plain = {getattr(aten, f"{name}_").default: getattr(aten, name).default for name in _ACTIVATIONS}
    fresh = {getattr(aten, name) for name in _FRESH}
    for node in program.graph.nodes:
        source = node.args[0] if node.target in plain else None
        if (
            isinstance(source, torch.fx.Node)
            and len(source.users) == 1
            and getattr(source.target, "overloadpacket", None) in fresh
        ):
            node.target = plain[node.target]
    program.graph_module.recompile()


def _output_names(flat: FlatModel, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    names = [name for name, _ in named_tensors(flat.call(*inputs))]
    if not names:
        raise ValueError("its forward returns no tensor")
    return unique_names(names, fallback="output", taken=flat.input_names)


def _restore_names(proto: onnx.ModelProto) -> None:
    """Gives the weights the names they have in the model's state_dict, and the free dimension the name "batch"."""
    names = {tensor.name for tensor in proto.graph.initializer}
    taken = {value for node in proto.graph.node for value in node.output} | {entry.name for entry in proto.graph.input}
    new = {name: name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)}
    new = {old: name for old, name in new.items() if name not in taken and name not in names}

    def rename(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            tensor.name = new.get(tensor.name, tensor.name)
        for info in graph.value_info:
            info.name = new.get(info.name, info.name)
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            for attribute in node.attribute:
                for child in (attribute.g, *attribute.graphs):
                    rename(child)

    rename(proto.graph)
    first = [entry.type.tensor_type.shape.dim for entry in proto.graph.input]
    symbols = {dims[0].dim_param for dims in first if dims and dims[0].dim_param}
    if len(symbols) == 1:  # torch.export's own symbol, such as s77, alone or in expressions
        symbol = re.compile(rf"\b{re.escape(symbols.pop())}\b")
        for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
            for dim in entry.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = symbol.sub("batch", dim.dim_param)


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Catches what PyTorch's exporters print, warn and log."""
    said = io.StringIO()
    # Many of PyTorch's loggers have a handler of their own, bound to the stderr of the time of import.
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        and name.split(".")[0] in _LOUD
        and (name in _LOUD or any(type(handler) is logging.StreamHandler for handler in logger.handlers))
    ]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.StreamHandler(said)], False
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield said
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


@contextlib.contextmanager
def _explained(flat: FlatModel, what: str, said: io.StringIO, dynamic_batch: bool) -> Iterator[None]:
    """Turns any error into an ``ExportError`` that names the model, the step and what the exporter said."""
    try:
        yield
    except Exception as error:  # exporters run the user's forward and raise whatever they meet
        remedy = "; if its forward fixes the batch size, pass dynamic_batch=False" if dynamic_batch else ""
        lines = said.getvalue().strip().splitlines()[-5:]
        raise ExportError(
            f"{type(flat.model).__name__} {what}: {_first_lines(error)}{remedy}"
            + ("\nThe exporter said: " + "\n".join(lines) if lines else "")
        ) from error


def _first_lines(error: BaseException, count: int = 4) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " ".join(lines[:count])
