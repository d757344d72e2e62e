"""The registry of wirings: what a hand-made net is, how it is initialised, and how its inputs are drawn."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Model = TypeVar("Model", bound=type[nn.Module])

CLASSES = 5
"""Width of the logits of every wiring that has one output."""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """One small net, with what is mathematically possible on it.

    Attributes:
        name: key in ``WIRINGS``.
        build: makes the net, in training mode; the same weights at every call, the global generator left alone.
        inputs: batch size -> (args, kwargs); the same values at every call.
        mixes: a norm or statistic spans channels, so that a widened net need not give the target's logits even where
            the weights from new channels to old ones are zero.
        expect: "grows", every width inside the net can grow; "pinned", none can; "partly", something in between or
            left to the compiler.
        grows: parameters of which at least one dimension must be able to grow.
        pinned: parameters of which no dimension may grow, since that would change the target's function.
        reason_contains: a word that the reason or the op of the pins in question holds (lower case), or "".
        outputs: tensors in the output in evaluation mode.
        train_outputs: tensors in the output in training mode.
        stochastic: draws random numbers in training mode.
        idle: parameters without gradient in training: constants that a batch norm behind them takes out again.
        copies: ``copy.deepcopy`` works; torch itself refuses where the old ``weight_norm`` hook left a computed tensor.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    mixes: bool = False
    expect: Literal["grows", "pinned", "partly"] = "grows"
    grows: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    reason_contains: str = ""
    outputs: int = 1
    train_outputs: int = 1
    stochastic: bool = False
    idle: tuple[str, ...] = ()
    copies: bool = True


WIRINGS: dict[str, Wiring] = {}


def register(
    name: str, factory: Callable[[], nn.Module], inputs: Callable[[int], Inputs] | None = None, **facts: Any
) -> None:
    """Add the net made by ``factory`` under ``name``; ``facts`` are the remaining fields of :class:`Wiring`."""
    if name in WIRINGS:
        raise ValueError(f"wiring {name!r} is registered twice")
    facts.setdefault("train_outputs", facts.get("outputs", 1))
    seed = zlib.crc32(name.encode())

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return randomise(factory()).train()

    WIRINGS[name] = Wiring(name, build, inputs or image(), **facts)


def wiring(name: str, inputs: Callable[[int], Inputs] | None = None, **facts: Any) -> Callable[[Model], Model]:
    """Class decorator around :func:`register`, for nets that are built without arguments."""

    def add(cls: Model) -> Model:
        register(name, cls, inputs, **facts)
        return cls

    return add


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Draw every parameter and running statistic anew, so that none is at a value (0 or 1) that hides a mistake.

    Matrices and filters: normal, variance 1.5 / fan-in. Biases: +-[0.1, 0.5]. Scales of any shape: [0.5, 1.5].
    Uses torch's global generator. Returns the same model.
    """
    for name, parameter in model.named_parameters():
        role = name.rsplit(".", 1)[-1]
        if max(parameter.shape, default=1) == parameter.numel():  # one axis at most: a bias or a scale
            value = torch.rand_like(parameter) + 0.5
            if role == "b" or any(word in role for word in ("bias", "beta", "shift", "token")):
                value = (0.1 + 0.4 * torch.rand_like(parameter)) * torch.randn_like(parameter).sign()
        else:
            value = torch.randn_like(parameter) * (1.5 / parameter[0].numel()) ** 0.5
        parameter.copy_(value)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
    return model


def generator(batch: int) -> torch.Generator:
    """A generator that depends on the batch size only."""
    return torch.Generator().manual_seed(1000 + batch)


def image(channels: int = 3, height: int = 6, width: int = 7) -> Callable[[int], Inputs]:
    """Inputs: one normal image batch (B, channels, height, width)."""
    return features(channels, height, width)


def features(*shape: int) -> Callable[[int], Inputs]:
    """Inputs: one normal tensor (B, *shape)."""
    return lambda batch: ((torch.randn(batch, *shape, generator=generator(batch)),), {})


def tokens(vocabulary: int, length: int) -> Callable[[int], Inputs]:
    """Inputs: one tensor of token numbers (B, length), int64."""
    return lambda batch: ((torch.randint(vocabulary, (batch, length), generator=generator(batch)),), {})


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors in a (nested) output, in order: tensors, sequences, mappings and dataclasses."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in tensors_in(item)]
    return []


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """The unit of most convolutional nets: conv "0", batch norm "1", ReLU "2"."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
