"""Extract: the plain model back out of a supernet.

In: a supernet, trained or not. Out: a copy with the original classes, forwards and tensors, and nothing else; the
supernet is not changed.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from netaug_fx.elastic import STATE, ModuleState, base_class, extra_blocks
from netaug_fx.errors import InputError
from netaug_fx.passes.copying import copy_model
from netaug_fx.split import Original, dense_tensors
from netaug_fx.supernet import CONTROL, load_draws, save_draws, settle_, split_of


def extract(supernet: nn.Module, *, dense: bool = False) -> nn.Module:
    """Returns the target as a plain model: the class, keys, shapes and forward of the model that was augmented.

    Args:
        supernet: What ``augment`` or ``evolve`` returned. The target of ``evolve`` is the slim net: the model's class
            with smaller layers, and where a forward holds widths in its text, a subclass of the same name.
        dense: Of what ``evolve`` returned, the dense net instead: of the model's own class and shapes.

    Raises:
        InputError: the module is not a supernet, or a forward in it was replaced after ``augment``; or ``dense`` is
            asked of what ``augment`` returned.

    Example:
        >>> from torch import nn
        >>> import netaug_fx
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> tiny = netaug_fx.extract(netaug_fx.augment(model, ratio=2))
        >>> type(tiny) is type(model) and tiny.state_dict().keys() == model.state_dict().keys()
        True
    """
    originals = split_of(supernet).originals if dense else {}
    settle_(supernet)
    _refuse_replaced_forwards(supernet)
    # neither widths nor extra blocks are copied
    memo: dict[int, Any] = {id(block): None for block in extra_blocks(supernet)}
    if dense:
        memo |= dense_tensors(supernet)
    for module in supernet.modules():
        state = module.__dict__.get(STATE)
        if isinstance(state, ModuleState):
            memo[id(state)] = None
    memo[id(supernet.__dict__[CONTROL])] = None
    tiny = copy_model(supernet, memo)
    for (path, ours), theirs in zip(supernet.named_modules(), list(tiny.modules()), strict=True):
        state = ours.__dict__.get(STATE)
        if isinstance(state, ModuleState):
            _restore_(theirs, state)
        if path in originals:
            _make_dense_(theirs, originals[path])
    del tiny.__dict__[CONTROL]
    _remove_hooks_(tiny)
    return tiny


def _refuse_replaced_forwards(supernet: nn.Module) -> None:
    for path, module in supernet.named_modules():
        own, state = module.__dict__.get("forward"), module.__dict__.get(STATE)
        if own is None or not isinstance(state, ModuleState):
            continue
        if _function(own) not in (base_class(type(module)).forward, _function(state.own_forward)):
            where = f"module {path!r} ({type(module).__name__})" if path else "the supernet"
            raise InputError(
                f"the forward of {where} was replaced after augment, as accelerate's mixed precision does: prepare "
                "torch.nn.Sequential(supernet) in its place and extract from the supernet itself, or delete the "
                "attribute 'forward'"
            )


def _function(forward: Any) -> Any:
    return forward.__func__ if isinstance(forward, MethodType) else forward


def _extras(state: ModuleState) -> list[str]:
    return [name for tensor in state.tensors.values() for name in tensor.extras]


def _restore_(module: nn.Module, state: ModuleState) -> None:
    module.__class__ = base_class(type(module))
    del module.__dict__[STATE]
    module.__dict__.pop("forward", None)  # the class's own, bound to the instance
    own = state.own_forward
    if own is not None:
        module.__dict__["forward"] = MethodType(own.__func__, module) if isinstance(own, MethodType) else own
    for name in _extras(state):
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
        module._non_persistent_buffers_set.discard(name)


def _make_dense_(module: nn.Module, original: Original) -> None:
    """Gives a module what it has in the dense net alone; all else is as it is in the supernet."""
    module.__class__ = original.cls
    module.__dict__.update(original.attributes)
    if original.forward is not None:
        module.__dict__["forward"] = MethodType(original.forward, module)


def _remove_hooks_(tiny: nn.Module) -> None:
    """Takes off the root's state_dict hooks that ``supernet.install`` put on."""
    for hooks, own in ((tiny._state_dict_hooks, save_draws), (tiny._state_dict_pre_hooks, settle_)):
        for key, hook in list(hooks.items()):
            if hook is own:
                del hooks[key]
    for key, wrapped in list(tiny._load_state_dict_pre_hooks.items()):
        if getattr(wrapped, "hook", wrapped) is load_draws:
            del tiny._load_state_dict_pre_hooks[key]
