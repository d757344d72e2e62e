"""What a run needs to go on as if it had never stopped, and reading weights without running code.

Checkpoints hold tensors, numbers, strings, lists and dicts only, so ``torch.load(weights_only=True)`` reads them: a
checkpoint from a stranger can do no harm. They are written under a temporary name and then renamed, so whatever
happens while writing, the last complete one stays.
"""

from __future__ import annotations

import errno
import json
import pickle
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from netaug_fx.atomic import atomic_open
from netaug_fx.errors import CheckpointError, RunError
from netaug_fx.supernet import STATE_KEY

FORMAT = 5
_EXTRA = re.compile(r"_netaug\d+$")  # how widening names the blocks beside a tensor
METADATA = "netaug_fx"  # the entry of a safetensors header that holds ours, as JSON


@dataclass
class ArmState:
    """The state of one arm of a run, between two steps.

    Attributes:
        arm: ``baseline`` or ``netaug``.
        fingerprint: identifies settings and net; a checkpoint of another run does not have it.
        weights: the net's ``state_dict``; for a supernet it includes the generator of the widths.
        optimizer: the optimizer's ``state_dict``.
        average: that of the running average of the weights; None where there is none.
        scaler: that of the gradient scaler of fp16; None where there is none.
        epoch: epochs completed.
        batch: batches taken of the epoch that is under way.
        step: optimizer steps in all; the learning rate follows from it.
        sums: running sums of that epoch, ``[processes, sums]``.
        history: one row of metrics for each completed epoch.
        best: validation accuracy of the best of them; None before the first.
        rng: states of the random number generators of each process, as tensors.
        data_order: seed, epoch, batch and number of images, from which their order follows; and what else of the data
            must be as it was: the number of validation images, and a hash of the names of classes.
        seconds: time spent so far.
    """

    arm: str
    fingerprint: str
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    scaler: dict[str, Any] | None
    epoch: int
    batch: int
    step: int
    sums: Tensor
    history: list[dict[str, float]]
    best: float | None
    rng: list[dict[str, Any]]
    data_order: dict[str, int]
    seconds: float
    format: int = field(default=FORMAT)


def save_state(state: ArmState, path: Path) -> None:
    """Write ``state`` to ``path``; a complete file or none.

    Raises:
        RunError: the file cannot be written; what was there before is untouched.
    """
    content = {item.name: getattr(state, item.name) for item in fields(state)}
    with writing(path), atomic_open(path) as stream:
        torch.save(content, stream)


def load_state(path: Path, arm: str, fingerprint: str) -> ArmState:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: the file is truncated, holds more than plain data, or belongs to another run.
    """
    content = _torch_load(path)
    names = {item.name for item in fields(ArmState)}
    if not isinstance(content, dict) or set(content) != names:
        raise CheckpointError(
            f"{path} is no checkpoint of a training run. Expected a file that `netaug-fx train` wrote."
        )
    state = ArmState(**content)
    if state.format != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {state.format}, this version of netaug_fx reads format {FORMAT}. "
            "Resume with the version that wrote it."
        )
    if state.arm != arm:
        raise CheckpointError(f"{path} is of the arm {state.arm!r}; the checkpoint of {arm!r} was expected there.")
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} was written under other settings than those of the run's config.yaml, or by another net. Bring "
            "back config.yaml as the run wrote it (and the model's code), or start a new run with --out."
        )
    return state


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a net's tensors as safetensors, with ``metadata`` (JSON values) in the file's header.

    Raises:
        RunError: the file cannot be written.
    """
    # Tied weights are written once for each name: safetensors refuses memory that is shared.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    # One entry, since safetensors writes several in an order that changes from run to run.
    header = {METADATA: json.dumps(dict(metadata))}
    with writing(path), atomic_open(path) as stream:
        stream.write(safetensors_bytes(tensors, metadata=header))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and our metadata of a ``.safetensors`` file, or the ``state_dict`` in a ``.pt`` file (no metadata).

    Raises:
        CheckpointError: the file is missing, truncated, or holds more than tensors.
    """
    if path.suffix != ".safetensors":
        content = _torch_load(path)
        weights = _state_dict_in(content)
        if weights is None:
            raise CheckpointError(f"{path} holds no state_dict. Save one with torch.save(model.state_dict(), path).")
        return _target({key.removeprefix("module."): value for key, value in weights.items()}), {}
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: {error}. Write or download it anew."
        ) from None
    return tensors, json.loads(header.get(METADATA, "{}"))


def _state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The weights in what a file holds: all of it, or what trainers (timm's, Lightning's) keep under a name."""
    if not isinstance(content, dict):
        return None
    for name in ("weights", "state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(name), dict):
            return _state_dict_in(content[name])
    return content if content and all(isinstance(value, Tensor) for value in content.values()) else None


def _target(weights: dict[str, Any]) -> dict[str, Any]:
    """The tiny net's own tensors in a supernet's state_dict; another net's is given back as it is."""
    if STATE_KEY not in weights:
        return weights
    return {key: value for key, value in weights.items() if key != STATE_KEY and not _EXTRA.search(key)}


def put_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    name: str,
    remedy: str = "Give the model it was saved from with --model (and its --num-classes).",
) -> None:
    """Load ``tensors`` from ``path`` into ``model``, whose name is ``name``; ``remedy`` ends the message of an error.

    Raises:
        CheckpointError: keys or shapes differ, so the file is of another model; the message shows the first ones.
    """
    own = model.state_dict()
    differences = [
        *(f"{key} is missing in the file" for key in own if key not in tensors),
        *(f"{key} is not in the model" for key in tensors if key not in own),
        *(
            f"{key} has shape {list(tensors[key].shape)} in the file, {list(own[key].shape)} in the model"
            for key in own
            if key in tensors and own[key].shape != tensors[key].shape
        ),
    ]
    if differences:
        more = f", and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise CheckpointError(f"{path} is of another model than {name}: {'; '.join(differences[:3])}{more}. {remedy}")
    model.load_state_dict(dict(tensors))


def _torch_load(path: Path) -> Any:
    _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        # torch names what it refused, below advice to load without weights_only, which would run the code.
        refused = next((line.strip() for line in lines if "global" in line.lower() and "Unsupported" in line), None)
        if refused is not None:
            raise CheckpointError(
                f"{path} holds more than plain tensors, and loading it could run code: {refused} "
                "Save a state_dict, or use a .safetensors file."
            ) from None
        # Its first line advises to load without weights_only here, too.
        told = [line.strip() for line in lines if "weights_only" not in line] or ["no file that torch.save wrote"]
        cause = next((line for line in told if line.startswith("WeightsUnpickler error")), told[0])
        raise CheckpointError(
            f"{path} is truncated or no checkpoint: {cause.rstrip('. ')}. Use another one, or start a new run."
        ) from None


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Give a file in it: of a run's, {path / 'tiny.safetensors'}.")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` such as a full disk into a `RunError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free some space, then continue with --resume."
        else:
            remedy = "Look at the folder and its permissions, and that no other process works on this run."
        raise RunError(
            f"{path} cannot be written: {error}. Nothing half-written remains, and complete checkpoints are kept. "
            f"{remedy}"
        ) from error


def rng_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's global generators, as tensors and numbers."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_version": version,
        "python_gauss": gauss,
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": [int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's device
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to where `rng_state` found them."""
    random.setstate((state["python_version"], tuple(state["python"].tolist()), state["python_gauss"]))
    position, has_gauss, cached = state["numpy_rest"]
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
