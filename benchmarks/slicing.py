"""The common way to share weights: each layer holds its widest weight, and every pass, the target's too, reads a slice.

In: a supernet. Out: a net of the original's classes with the same widths to choose from, for comparison alone: where a
layer reads concatenated channels, its first columns are not those of the target, but as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dense import Sizes, dense_net
from netaug_fx.elastic import STATE, ModuleState
from netaug_fx.passes.layout import shape
from netaug_fx.supernet import control

Slices = tuple[slice, ...]


class SlicedNet:
    """A net of widest weights, and what each of its modules reads at an assignment of widths.

    Attributes:
        net: The net; outside of `at` it is at the target's widths.
    """

    def __init__(self, supernet: nn.Module) -> None:
        """Takes the widest weights and the choices of widths of what ``augment`` returned; it is not changed."""
        self._supernet = supernet
        self._known: dict[tuple[int, ...], list[tuple[nn.Module, dict[str, Any]]]] = {}
        self.net = dense_net(supernet, control(supernet).widest())
        self._elastic = [
            (module, state, plain)
            for module, plain in zip(supernet.modules(), self.net.modules(), strict=True)
            if isinstance(state := module.__dict__.get(STATE), ModuleState)
        ]
        for _, state, plain in self._elastic:
            plain.__class__ = _sliced_class(type(plain), tuple(tensor.name for tensor in state.tensors.values()))
        self._choose({})

    @contextmanager
    def at(self, widths: Mapping[str, int]) -> Iterator[None]:
        """The net at some widths, by group name; groups left out keep the target's."""
        self._choose(widths)
        yield
        self._choose({})

    def _choose(self, widths: Mapping[str, int]) -> None:
        assignment = control(self._supernet).as_widths(widths)
        if assignment not in self._known:
            self._known[assignment] = [
                (plain, self._read(module, state, widths, assignment)) for module, state, plain in self._elastic
            ]
        for plain, reads in self._known[assignment]:
            plain.__dict__.update(reads)

    def _read(
        self, module: nn.Module, state: ModuleState, widths: Mapping[str, int], assignment: tuple[int, ...]
    ) -> dict[str, Any]:
        with self._supernet.augmented(widths), torch.no_grad():  # type: ignore[operator]
            reads: dict[str, Any] = {name: getattr(module, name) for name in state.integers}
            if state.forwards:
                reads[STATE] = Sizes([state.size(index) for index in range(len(state.sizes))])
        reads["slices"] = {
            tensor.name: tuple(slice(0, length) for length in shape(tensor.layouts, assignment))
            for tensor in state.tensors.values()
        }
        return reads


def _sliced_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A class whose tensors of these names are slices of what it holds."""

    def slicing(name: str) -> property:
        def read(self: nn.Module) -> Tensor | None:
            held = self._parameters[name] if name in self._parameters else self._buffers[name]
            slices: Slices = self.__dict__["slices"][name]
            return held if held is None or not slices else held[slices]

        return property(read)

    return type(f"Sliced{base.__name__}", (base,), {name: slicing(name) for name in names})
