"""The design's invariants as functions, shared by all tests that hold nets against them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import netaug_fx
from netaug_fx.assembly import STATISTIC
from netaug_fx.passes.compare_modules import same_class
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.layout import positions, shape
from netaug_fx.passes.running import output_tensors
from netaug_fx.split import elastic_tensors, registered
from netaug_fx.supernet import Supernet, control

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_PLAIN = (bool, int, str, tuple, type(None))


def run(model: nn.Module, inputs: Inputs, seed: int = 0) -> list[Tensor]:
    """The output tensors of one call, from a fixed random-number state."""
    torch.manual_seed(seed)
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return output_tensors(model(*args, **kwargs))


def assert_equal(ours: list[Tensor], theirs: list[Tensor], what: str) -> None:
    assert len(ours) == len(theirs), what
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape, what
        assert a.dtype == b.dtype, what
        assert is_same(a, b), what


def is_same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, where NaN is NaN."""
    return torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()]))


def loss(outputs: list[Tensor]) -> Tensor:
    return sum(
        ((t.double() ** 2).mean() for t in outputs if t.is_floating_point()), torch.zeros((), dtype=torch.double)
    )


def assert_target_is_the_model(supernet: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    """Invariant 1: outputs, gradients, running statistics and random-number use, in train and eval mode."""
    ours, theirs = copy_model(supernet), copy_model(model)
    for training in (True, False):
        results = []
        for net in (ours, theirs):
            net.train(training)
            net.zero_grad(set_to_none=True)
            outputs = run(net, inputs)
            loss(outputs).backward()
            results.append((outputs, torch.get_rng_state()))
        assert_equal(results[0][0], results[1][0], f"outputs, training={training}")
        assert torch.equal(results[0][1], results[1][1]), f"random numbers used, training={training}"
        gradients = dict(ours.named_parameters(remove_duplicate=False))
        for name, parameter in theirs.named_parameters(remove_duplicate=False):
            twin = gradients[name]
            assert (twin.grad is None) == (parameter.grad is None), name
            if parameter.grad is not None:
                assert is_same(twin.grad, parameter.grad), f"gradient of {name}"
        buffers = dict(ours.named_buffers(remove_duplicate=False))
        for name, buffer in theirs.named_buffers(remove_duplicate=False):
            assert is_same(buffers[name], buffer), f"buffer {name}"
    for net in (ours, theirs):
        net.zero_grad(set_to_none=True)


def assert_extract_restores(supernet: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    """Invariant 2: class, keys, tensors bit for bit, module classes and attributes."""
    tiny = netaug_fx.extract(supernet)
    assert same_class(tiny, model)
    expected = model.state_dict()
    got = tiny.state_dict()
    assert list(got) == list(expected)
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert got[key].dtype == value.dtype, key
            assert is_same(got[key], value), key
    assert [name for name, _ in tiny.named_modules()] == [name for name, _ in model.named_modules()]
    assert all(same_class(a, b) for a, b in zip(tiny.modules(), model.modules(), strict=True))
    for ours, theirs in zip(tiny.modules(), model.modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys()
        for name, value in theirs.__dict__.items():
            assert not isinstance(value, _PLAIN) or ours.__dict__[name] == value, name
        assert ours._parameters.keys() == theirs._parameters.keys()
        assert ours._buffers.keys() == theirs._buffers.keys()
    original = copy_model(model)
    for training in (True, False):
        ours, theirs = run(tiny.train(training), inputs), run(original.train(training), inputs)
        assert_equal(ours, theirs, f"extracted outputs, training={training}")


def _learns_awake(supernet: nn.Module, inputs: Inputs) -> bool:
    """Whether some extra block has a gradient once no rectifier silences it: a channel or two may well be silent."""
    if any(group.choices[-1] - group.width > 2 for group in control(supernet).groups):
        return False
    net, generator = copy_model(supernet), torch.Generator().manual_seed(1)
    blocks = [registered(module, extra) for module, tensor in elastic_tensors(net) for extra in tensor.extras]
    with torch.no_grad():
        for block in blocks:
            if block.dim() > 1:
                block.copy_(torch.rand(block.shape, generator=generator) * 0.1)
            else:
                block.fill_(1)
    net.zero_grad()
    with Supernet.augmented(net, widest(net)):
        loss(run(net, inputs)).backward()
    return any(block.grad is not None and bool(block.grad.any()) for block in blocks)


def widest(supernet: nn.Module) -> dict[str, int]:
    return {group.name: group.choices[-1] for group in control(supernet).groups}


def assignments(supernet: nn.Module, count: int = 2, seed: int = 0) -> Iterator[dict[str, int]]:
    """The base, the widest and random widths, in that order."""
    generator = random.Random(seed)
    groups = control(supernet).groups
    yield {group.name: group.width for group in groups}
    yield widest(supernet)
    for _ in range(count):
        yield {group.name: generator.randint(group.width, group.choices[-1]) for group in groups}


def run_widest(supernet: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Outputs of the widest net with norm statistics that no sorting can touch (mean 0, variance 1)."""
    with torch.no_grad(), Supernet.augmented(supernet, widest(supernet)):
        control(supernet).active.statistics = {}
        return run(supernet, inputs)


def as_double(inputs: Inputs) -> Inputs:
    converted: Inputs = pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)
    return converted


def assert_every_width_runs(supernet: nn.Module, inputs: Inputs) -> None:
    """Outputs keep their shapes and stay finite at every width."""
    net = copy_model(supernet).eval()
    with torch.no_grad():
        expected = run(net, inputs)
        for widths in assignments(net):
            with Supernet.augmented(net, widths):
                got = run(net, inputs)
            for a, b in zip(got, expected, strict=True):
                assert a.shape == b.shape
                assert torch.isfinite(a).all() or not torch.isfinite(b).all()


def contracted_blocks(supernet: nn.Module) -> Iterator[Tensor]:
    """The extra-to-target weights."""
    for module, tensor in elastic_tensors(supernet):
        for dim, extra in zip(tensor.dims, tensor.extras, strict=True):
            if dim in tensor.contracted:
                yield registered(module, extra)


def zero_extra_to_target_(supernet: nn.Module) -> None:
    """Zeroes what feeds extra channels into the target; all other extra blocks get noise, so that a wrong map shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module, tensor in elastic_tensors(supernet):
            for dim, extra in zip(tensor.dims, tensor.extras, strict=True):
                block = registered(module, extra)
                if dim in tensor.contracted:
                    block.zero_()
                elif block.is_floating_point():
                    # below a layer's own initialisation, or deep nets that square their activations overflow
                    scale = 0.3 * max(block[0].numel(), 1) ** -0.5 if block.dim() > 1 and len(block) else 1.0
                    block.copy_((torch.rand(block.shape, generator=generator) * 0.5 + 0.1) * scale)


@contextmanager
def statistics_of_the_target(supernet: nn.Module) -> Iterator[None]:
    """Within an augmented context, norms use the target's running statistics on the target's channels."""
    active = control(supernet).active
    statistics = {}
    for module, tensor in elastic_tensors(supernet):
        if tensor.kind != STATISTIC:
            continue
        base = registered(module, tensor.name)
        # a mean of zero keeps the extra channels alive behind a rectifier
        fill = 1.0 if tensor.name.endswith("var") else 0.0
        wide = torch.full(shape(tensor.layouts, active.widths), fill, dtype=base.dtype)
        if base.dim():
            wide[positions(tensor.layouts[0], None, active.widths)] = base
        statistics[tensor.full_name] = wide if base.dim() else base.clone()
    active.statistics = statistics
    yield


def assert_zeroed_extras_give_the_target(supernet: nn.Module, inputs: Inputs, tolerance: float = 1e-7) -> None:
    """Invariant 3: with extra-to-target blocks zeroed, every width gives the target's outputs (in float64)."""
    net = copy_model(supernet).double().eval()
    zero_extra_to_target_(net)
    inputs = as_double(inputs)
    with torch.no_grad():
        expected = run(net, inputs)
        for widths in assignments(net):
            with Supernet.augmented(net, widths), statistics_of_the_target(net):
                got = run(net, inputs)
            for a, b in zip(got, expected, strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_a_step_trains_everything(supernet: nn.Module, inputs: Inputs) -> None:
    """One training step of both passes: finite gradients, one for every extra block, and some of them not zero.

    After the step the extracted net still gives what the target gives.
    """
    net = copy_model(supernet).train()
    loss(run(net, inputs)).backward()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with Supernet.augmented(net, widest(net)):
        loss(run(net, inputs)).backward()
    for name, buffer in net.named_buffers():
        assert is_same(buffer, buffers[name]), f"augmented pass changed {name}"
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
    blocks = {
        f"{tensor.full_name}: {extra}": registered(module, extra)
        for module, tensor in elastic_tensors(net)
        for extra in tensor.extras
        if registered(module, extra).requires_grad
    }
    for name, block in blocks.items():
        assert block.grad is not None, f"{name} has no gradient"
    if blocks and any(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters()):
        learns = any(block.grad.any() for block in blocks.values())
        assert learns or _learns_awake(net, inputs), "all gradients of extra blocks are 0"
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        assert_equal(run(netaug_fx.extract(net).eval(), inputs), run(net.eval(), inputs), "extracted after a step")
