"""The passes whose cost is compared: plain, target, NetAug's step, the least it could cost, and the same by slicing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dense import dense_net
from benchmarks.memory import peak_bytes
from benchmarks.slicing import SlicedNet

Call = Callable[[], None]
Loss = Callable[[nn.Module, Tensor], Tensor]

RATIO = 3.0
"""Widest net over target, in all benchmarks of time but that of scaling."""


def optimizer_of(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """The learning rate is small so that many repetitions stay in range."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, nesterov=True)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()  # type: ignore[no-any-return]


def synchronized(call: Call, device: torch.device) -> Call:
    """The call, and waiting for what it started on a GPU."""
    if device.type != "cuda":
        return call

    def waiting() -> None:
        call()
        torch.cuda.synchronize(device)

    return waiting


def plain_step(model: nn.Module, x: Tensor, loss: Loss = loss_of) -> Call:
    """Forward, backward and step of a net: of a plain one, or of a supernet in target mode."""
    optimizer = optimizer_of(model.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()

    return step


def netaug_step(supernet: Any, x: Tensor, widths: dict[str, int], loss: Loss = loss_of) -> Call:
    """Both passes of the paper's step at given widths, and the optimizer's; of a compiled supernet too."""
    optimizer = optimizer_of(supernet.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(supernet, x).backward()
        with supernet.augmented(widths):
            loss(supernet, x).backward()
        optimizer.step()

    return step


def least_step(plain: nn.Module, dense: nn.Module, supernet: nn.Module, x: Tensor, loss: Loss = loss_of) -> Call:
    """What the arithmetic of `netaug_step` costs: a pass of the plain net, one of a plain dense net of the widths, and
    the optimizer's time on the parameters that the supernet holds."""
    held = [nn.Parameter(parameter.detach().clone()) for parameter in supernet.parameters()]
    for parameter in held:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = optimizer_of(held)

    def step() -> None:
        for net in (plain.train(), dense.train()):
            net.zero_grad()
            loss(net, x).backward()
        optimizer.step()

    return step


def sliced_step(sliced: SlicedNet, x: Tensor, widths: dict[str, int], loss: Loss = loss_of) -> Call:
    """`netaug_step` where every pass reads slices of the widest weights."""
    optimizer = optimizer_of(sliced.net.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(sliced.net, x).backward()
        with sliced.at(widths):
            loss(sliced.net, x).backward()
        optimizer.step()

    return step


def dense_pass(supernet: Any, x: Tensor, widths: dict[str, int]) -> Call:
    """Forward and backward of a plain dense net of those widths."""
    dense = dense_net(supernet, widths).train()

    def wide() -> None:
        dense.zero_grad()
        loss_of(dense, x).backward()

    return wide


def augmented_pass(supernet: Any, x: Tensor, widths: dict[str, int]) -> Call:
    """Forward and backward of the supernet at those widths."""
    supernet.train()

    def wide() -> None:
        supernet.zero_grad()
        with supernet.augmented(widths):
            loss_of(supernet, x).backward()

    return wide


def transient_memory(model: nn.Module, supernet: Any, x: Tensor, widths: dict[str, int]) -> dict[str, int]:
    """Most bytes that one forward and backward holds at once, beside parameters and their gradients, which are there.

    Returns:
        Bytes of ``plain`` (the model), ``target`` (the supernet as it is), ``augmented``, ``dense`` (a plain net of
        those widths), ``slicing``; and of ``assembled``, the parameters of the dense net: what may be held beside it,
        one assembled weight a layer.
    """
    plain, sliced, dense = copy.deepcopy(model), SlicedNet(supernet), dense_net(supernet, widths).train()
    passes: dict[str, tuple[nn.Module, Call]] = {
        "plain": (plain, lambda: loss_of(plain, x).backward()),
        "target": (supernet, lambda: loss_of(supernet, x).backward()),
        "augmented": (supernet, lambda: _at(supernet.augmented(widths), supernet, x)),
        "dense": (dense, lambda: loss_of(dense, x).backward()),
        "slicing": (sliced.net, lambda: _at(sliced.at(widths), sliced.net, x)),
    }
    found = {}
    for name, (net, call) in passes.items():
        for parameter in net.train().parameters():
            parameter.grad = torch.zeros_like(parameter)
        found[name] = peak_bytes(call)
    found["assembled"] = sum(parameter.numel() * parameter.element_size() for parameter in dense.parameters())
    return found


def _at(widths: AbstractContextManager[Any], net: nn.Module, x: Tensor) -> None:
    with widths:
        loss_of(net, x).backward()
