"""One net under Torch-Pruning and under netaug_fx, held against the same criterion.

Torch-Pruning removes channels and netaug_fx adds them, but both rest on one claim: which entries of which weights
belong to one channel, wherever a forward moves it. The claim is tested in numbers: what goes, or came, is made
irrelevant, and then must not be missed, or noticed.

Torch-Pruning, its own criterion (``tp_runs``): half of the channels of every group of its ``MagnitudePruner`` are
removed, the forward still runs, outputs keep their shapes and parameters are fewer. As in its own test on torchvision,
layers that write the outputs and the output projection of ``nn.MultiheadAttention`` are ignored, and a
``VisionTransformer`` is told its new width. Layers that write the outputs are those whose group, in its own graph,
reaches a node that nothing follows. It is told the numbers of attention heads, and modules are told the new width of a
head, as its examples do by hand; it also runs without, and the better outcome counts.

Torch-Pruning, by the common criterion (``tp_exact``): every entry that it removes is zeroed in an unpruned copy, and
the pruned net must give that copy's outputs. A removed channel is then zero when it is written (batch norm's scale and
shift are removed with it, so zeroed), and whatever it becomes on its way (a sigmoid makes 0.5 of it), the entries that
read it are zeroed too. So where the right entries were removed the two nets are equal; where a neighbour's entry was
removed instead, a channel that stays is read by the wrong weights in one of them, and the outputs differ. They differ
too where channels cannot go without the others noticing, as in a softmax over channels.

netaug_fx (``ours_augmented``, ``ours_exact``): ``augment`` hands over a supernet; its target is the model bit for bit;
with extra-to-target blocks zeroed, it gives the target's outputs at the widest and at random widths.

The same for both:

- Outputs are compared in float64 and in evaluation mode, relative to how far they move between two inputs. Weights are
  random throughout, without the ones and zeros of fresh norms, biases and layer scales, which would hide mistakes.
- Statistics that span channels change with any of them. For Torch-Pruning, torch's layer, group and RMS norms keep
  their scale and shift only, and the factor ``head width ** -0.5`` of torch's attention is taken out; where other
  statistics span channels (``mixes``), different outputs prove nothing, and the net is not judged. In wider nets, where
  it is known which channels are the original's, statistics are taken across those (``benchmarks/coverage_maps.py``).
- A net is not judged either if its outputs do not depend on its inputs, or if it does not run in float64; nor where
  outputs differ after modules were told the width of a head, which some of them also scale by.
- Share of MACs: a module counts if a tensor of its own has a dimension in a group that is pruned, or grows. MACs of
  modules without parameters (products of activations) are left out.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.coverage_maps import prove
from benchmarks.coverage_table import NOT_PROVEN
from benchmarks.torch_pruning_adapter import Inputs, call, prune, set_kept, zero_removed
from netaug_fx.api import compile_model, hand_over
from netaug_fx.errors import NetAugError
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.macs import MacCount, count
from netaug_fx.passes.running import output_tensors
from netaug_fx.supernet import control
from tests import invariants

WIDTH_RATIO = 1.5
Columns = tuple[str, str, str, str]
TOLERANCE = 1e-6
LONGEST_REASON = 300
TP: Columns = ("tp_runs", "tp_exact", "tp_macs_share", "tp_reason")
OURS: Columns = ("ours_augmented", "ours_exact", "ours_macs_share", "ours_reason")


@dataclass(frozen=True)
class Subject:
    """A net to be measured.

    Attributes:
        build: Makes it, with random weights.
        inputs: Arguments of its forward.
        mixes: Statistics other than those of torch's norms span channels.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Inputs]
    mixes: bool


@dataclass(frozen=True)
class Verdict:
    """What one tool did with one net; ``exact`` and ``share`` are None where there is nothing to judge."""

    works: bool
    exact: bool | None
    share: float | None
    reason: str = ""

    def columns(self, works: str, exact: str, share: str, reason: str) -> dict[str, Any]:
        """The fields under a tool's names."""
        return {works: self.works, exact: self.exact, share: self.share, reason: self.reason}


def measure(subject: Subject, tool: Columns) -> dict[str, Any]:
    """One tool on one net: its columns of the row; raises what the net itself raises."""
    torch.manual_seed(0)
    model = subject.build()
    inputs = subject.inputs(model)
    with _silence():
        _outputs(copy_model(model), inputs)
    macs, macs_error = _counted(model, inputs)
    precise = _runs(copy_model(model).double(), invariants.as_double(inputs))
    if tool == TP:
        return prune_verdict(model, inputs, subject.mixes, precise, macs).columns(*TP)
    return {**augment_verdict(model, inputs, precise, macs).columns(*OURS), "macs_error": macs_error}


# -- Torch-Pruning ---------------------------------------------------------------------------------------------------


def prune_verdict(
    model: nn.Module, inputs: Inputs, mixes: bool = False, precise: bool = True, macs: MacCount | None = None
) -> Verdict:
    """Prunes half of all channels and compares with the zeroed net; the better of the two ways to name heads counts."""
    if precise:
        model, inputs = copy_model(model).double(), invariants.as_double(inputs)
    verdicts = []
    for tell_heads in (True, False):
        verdicts.append(_pruned_verdict(model, inputs, mixes, precise, macs, tell_heads))
        if verdicts[-1].exact:
            break
    return max(verdicts, key=lambda verdict: (verdict.works, verdict.exact is not False, bool(verdict.exact)))


def _pruned_verdict(
    model: nn.Module, inputs: Inputs, mixes: bool, precise: bool, macs: MacCount | None, tell_heads: bool
) -> Verdict:
    reference, model = copy_model(model).eval(), copy_model(model).eval()
    share = None
    try:
        with _silence():
            shapes = [tensor.shape for tensor in _outputs(copy_model(reference), inputs)]
            pruned = prune(model, inputs, tell_heads)
            share = macs_share(model, macs, pruned.modules)
            if not pruned.modules:
                return Verdict(False, None, share, "no group can be pruned")
            set_kept(model, reference, pruned.kept)
            found = [tensor.shape for tensor in _outputs(model, inputs)]
    except Exception as error:  # any code may run in a forward, and in the tool under test
        return Verdict(False, None, share, brief(error))
    if found != shapes:
        return Verdict(False, None, share, f"outputs of {_listed(shapes)} became {_listed(found)}")
    if _size(model) >= _size(reference):
        return Verdict(False, None, share, "no parameter was removed")
    if not precise:
        return Verdict(True, None, share, "not judged: the net does not run in float64")
    if any(numbers is None for numbers in pruned.kept.values()):
        return Verdict(True, None, share, "not judged: weights are computed, and pruning computed new ones")
    zero_removed(reference, pruned.kept)
    with _silence():
        difference = _difference(model, reference, inputs)
    if difference is None:
        return Verdict(True, None, share, "not judged: the outputs do not depend on the inputs")
    if difference <= TOLERANCE:
        return Verdict(True, True, share)
    if mixes:
        return Verdict(True, None, share, "not judged: statistics span channels")
    if pruned.by_hand:
        return Verdict(True, None, share, "not judged: the width of a head was set by hand, and may be a factor")
    return Verdict(True, False, share, f"outputs differ from the zeroed net's by {difference:.1e} of their range")


@torch.no_grad()
def _difference(model: nn.Module, reference: nn.Module, inputs: Inputs) -> float | None:
    """Largest difference of the outputs, relative to how far they move with the inputs; None if they do not move."""
    expected = _outputs(copy_model(reference), inputs, neutral=True)
    flipped = pytree.tree_map_only(Tensor, lambda t: t.flip(tuple(range(t.dim()))), inputs)
    moved = _outputs(reference, flipped, neutral=True)
    worst, moves = 0.0, False
    for ours, theirs, other in zip(_outputs(model, inputs, neutral=True), expected, moved, strict=True):
        if not theirs.is_floating_point() or not theirs.numel():
            continue
        size, signal = float(theirs.abs().max()), float((other - theirs).abs().max())
        moves |= signal > 1e-9 * size
        difference = float((ours - theirs).abs().max())
        worst = max(worst, difference / max(signal, TOLERANCE * size, 1e-300))
    return (worst if math.isfinite(worst) else math.inf) if moves else None


# -- netaug_fx -------------------------------------------------------------------------------------------------------


def augment_verdict(model: nn.Module, inputs: Inputs, precise: bool = True, macs: MacCount | None = None) -> Verdict:
    """Puts the net into a supernet and holds that against the invariants."""
    try:
        with _silence():
            compiled = compile_model(model, WIDTH_RATIO, example_inputs=inputs)
            supernet = hand_over(compiled)
    except NetAugError as error:
        return Verdict(False, None, 0.0, brief(error))
    except Exception as error:  # not an error that netaug_fx raises on purpose: to be told apart in the table
        return Verdict(False, None, None, f"unexpected {brief(error)}")
    layers = {path for group in control(supernet).groups for path in group.layers}
    share = macs_share(model, macs, {id(module) for path, module in model.named_modules() if path in layers})
    try:
        with _silence():
            invariants.assert_target_is_the_model(supernet, model, inputs)
    except Exception as error:  # any code may run in a forward
        return Verdict(True, False, share, f"the target is not the model: {brief(error)}")
    if not precise:
        return Verdict(True, None, share, "not judged: the net does not run in float64")
    try:
        with _silence():
            answer = prove(compiled, supernet, inputs).answer
    except Exception as error:  # any code may run in a forward
        return Verdict(True, False, share, f"a wider net does not run: {brief(error)}")
    if answer == NOT_PROVEN:
        return Verdict(True, None, share, f"not judged: {answer}")
    if answer != "ok":
        return Verdict(True, False, share, f"extra channels reach the target: {answer}")
    return Verdict(True, True, share)


# -- shared ----------------------------------------------------------------------------------------------------------


class _Neutral(TorchFunctionMode):
    """Takes out of torch's norms and attention what depends on how many channels there are."""

    def __torch_function__(
        self, func: Any, types: Collection[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _NORMS:
            return _NORMS[func](*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            kwargs["scale"] = 1.0
        if func is F.multi_head_attention_forward:
            return func(**_without_scale(*args, **kwargs))
        return func(*args, **kwargs)


def _without_scale(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of ``multi_head_attention_forward`` whose queries are larger by what it divides them by."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    fused, separate, bias = (given.get(name) for name in ("in_proj_weight", "q_proj_weight", "in_proj_bias"))
    weight = fused if separate is None else separate
    width = len(weight) // 3 if separate is None else len(weight)
    factor = (width // given["num_heads"]) ** 0.5
    for name, tensor in (("in_proj_weight" if separate is None else "q_proj_weight", weight), ("in_proj_bias", bias)):
        if tensor is not None:
            given[name] = torch.cat([tensor[:width] * factor, tensor[width:]])
    return given


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, *_: Any, **__: Any) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, *_: Any, **__: Any) -> Tensor:
    over = (-1, *[1] * (x.dim() - 2))
    return _layer_norm(x, None, *(tensor if tensor is None else tensor.view(over) for tensor in (weight, bias)))


_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _layer_norm,
    torch.rms_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
}


def macs_share(model: nn.Module, macs: MacCount | None, layers: Collection[int]) -> float | None:
    """Share of the MACs of modules with parameters that falls to some of them, given by id; None if nobody can tell."""
    if macs is None:
        return None
    chosen = total = 0
    for path, module in model.named_modules():
        lists = [child for child in module.children() if isinstance(child, nn.ParameterList | nn.ParameterDict)]
        holders = [holder for holder in (module, *lists) if any(True for _ in holder.parameters(recurse=False))]
        if not holders:
            continue
        children = (f"{path}.{name}" if path else name for name, _ in module.named_children())
        own = macs.by_module.get(path, 0) - sum(macs.by_module.get(child, 0) for child in children)
        total += own
        chosen += own if any(id(holder) in layers for holder in holders) else 0
    return round(chosen / total, 4) if total else None


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:LONGEST_REASON].removesuffix(": ")


def _counted(model: nn.Module, inputs: Inputs) -> tuple[MacCount | None, str]:
    try:
        with _silence():
            return count(model, inputs), ""
    except NetAugError as error:
        return None, brief(error)


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with _silence():
            _outputs(model.eval(), inputs)
    except Exception:  # any code may run in a forward; that it fails is the answer
        return False
    return True


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Inputs, neutral: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    with _Neutral() if neutral else contextlib.nullcontext():
        return output_tensors(call(model.eval(), inputs))


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _listed(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Tools that print and warn on every net would bury the table."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
