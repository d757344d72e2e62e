"""Plain attributes of modules (counters, caches, the last output): an augmented pass leaves them the target's.

Buffers that forwards write into are elastic tensors and have scratch copies (``netaug_fx.elastic``). Plain attributes
have none: what a forward assigns in an augmented pass is taken back when the pass is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from netaug_fx.passes.source_scan import ASSIGNS, names_used

_REGISTERED = ("_parameters", "_buffers", "_modules", "training")


def assigns_attributes(model: nn.Module) -> bool:
    """Whether a forward may assign to an attribute, of its own module or of another."""
    return any(ASSIGNS in names_used(module) for module in model.modules())


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Within this context attributes may be assigned; afterwards they are as before, ``training`` excepted.

    Lists and dicts that a forward adds to are left alone: losses that are gathered in one are read outside.
    """
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, was in before:
            _put_back_(module.__dict__, was)


def _put_back_(now: dict[str, Any], was: dict[str, Any]) -> None:
    for name in [name for name in now if name not in was]:
        del now[name]
    for name, value in was.items():
        if name not in _REGISTERED and (name not in now or now[name] is not value):
            now[name] = value


def tensors_held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in plain attributes, in lists and dicts too, by the path of the attribute."""
    for path, module in model.named_modules():
        for name, attribute in vars(module).items():
            if name in _REGISTERED or not isinstance(attribute, (Tensor, dict, list, tuple)):
                continue
            for value in pytree.tree_leaves(attribute):
                if isinstance(value, Tensor):
                    yield (f"{path}.{name}" if path else name), value
