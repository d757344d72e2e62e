"""Parameters and multiply-adds of a model, counted twice: by fvcore on a trace, by torch's counter on a run.

In: a model and example inputs. Out: a ``MacCount``. The main figure holds convolutions, linear layers and matrix
products only, as papers on tiny nets count; what norms, pooling and resizing cost is kept apart.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from fvcore.nn.flop_count import FlopCountAnalysis
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from netaug_fx.errors import TraceError
from netaug_fx.passes.flatten import FlatModel, flat_model, with_batch
from netaug_fx.passes.untouched import untouched

NORMS = ("batch_norm", "group_norm", "layer_norm", "instance_norm")
_ROOT = "model"


@dataclass(frozen=True)
class MacCount:
    """What one forward in eval mode costs, for the whole batch of the example inputs.

    Attributes:
        macs: Multiply-adds of convolutions, linear layers and matrix products (attention's included); with
            ``norms=True`` also the norms' operations.
        params: Elements of all parameters, shared ones once.
        by_module: ``macs`` by module path, each with its children; "" is the model. A shared module's are under its
            first path.
        by_op: ``macs`` by operator.
        left_out: What fvcore counts besides and ``macs`` leaves out, by operator (norms, pooling, resizing).
        uncounted: Operators nobody counts, such as activations, and how often they ran.
        torch_macs: Half the operations that ``torch.utils.flop_counter`` finds (norms never counted): a cross-check
            that shares no code with ``macs``.
        includes: One sentence saying what ``macs`` includes.
    """

    macs: int
    params: int
    by_module: dict[str, int]
    by_op: dict[str, int]
    left_out: dict[str, int]
    uncounted: dict[str, int]
    torch_macs: int
    includes: str

    def to_dict(self) -> dict[str, Any]:
        """The count as plain numbers, strings and dicts."""
        return asdict(self)


def count(model: nn.Module, example_inputs: Any = None, *, norms: bool = False) -> MacCount:
    """Counts parameters and multiply-adds of one forward on real tensors; the model is left as it was.

    Args:
        model: Any module; counted in eval mode.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments, counted as given: a batch of
            two costs twice as much as a batch of one. None looks for an input of batch one.
        norms: Whether ``macs`` includes norms, at fvcore's rates (in eval mode two operations for each element of
            an affine batch norm, five for other affine norms).

    Raises:
        InputError: The inputs are no tensors, or none was found.
        TraceError: The model does not run on the inputs, or cannot be traced.
    """
    with untouched(*([model] if isinstance(model, nn.Module) else [])), sdpa_kernel(SDPBackend.MATH), _frozen(model):
        flat = flat_model(model, example_inputs)
        inputs = with_batch(flat.inputs, 1) if example_inputs is None else flat.inputs
        torch_macs = _count_with_torch(flat, inputs)
        analysis = _analyse_with_fvcore(flat, inputs)
    kept = (*_CONTRACTIONS, *(NORMS if norms else ()))
    counts = analysis.by_module_and_operator()
    by_op, left_out = Counter[str](), Counter[str]()
    for op, operations in counts[_ROOT].items():
        (by_op if op in kept else left_out)[op] += int(operations)
    by_module = {
        name.removeprefix(_ROOT).removeprefix("."): int(sum(ops[op] for op in kept))
        for name, ops in counts.items()
        if name
    }
    return MacCount(
        macs=sum(by_op.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        by_module=by_module,
        by_op=dict(by_op),
        left_out=dict(left_out),
        uncounted={op.removeprefix("aten::"): number for op, number in analysis.unsupported_ops(_ROOT).items()},
        torch_macs=torch_macs,
        includes=_includes(flat, inputs, norms),
    )


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter needs a gradient: torch's counter fails on results that are views of those that do."""
    trained = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _includes(flat: FlatModel, inputs: tuple[Tensor, ...], norms: bool) -> str:
    shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(flat.input_names, inputs, strict=True))
    return (
        "Multiply-adds of convolutions, linear layers, recurrent layers and matrix products, attention included"
        + (", and fvcore's operations of norms; " if norms else "; norms, ")
        + f"biases, activations, pooling and resizing are left out; in eval mode, for the inputs {shapes}."
    )


def _count_with_torch(flat: FlatModel, inputs: tuple[Tensor, ...]) -> int:
    counter = FlopCounterMode(display=False)
    # oneDNN runs a whole recurrent layer as one operator, which the counter does not know.
    recurrent = any(isinstance(module, nn.RNNBase) for module in flat.modules())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False) if recurrent else contextlib.nullcontext(), counter:
                flat(*inputs)
    except Exception as error:  # any code may run in a user's forward
        raise TraceError(
            f"{type(flat.model).__name__} does not run on the example inputs: {type(error).__name__}: {error}; "
            f"pass example_inputs that its forward takes"
        ) from error
    return counter.get_total_flops() // 2


def _analyse_with_fvcore(flat: FlatModel, inputs: tuple[Tensor, ...]) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(flat, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    for op, handle in _HANDLES.items():
        analysis.set_op_handle(f"aten::{op}", handle)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis.total()
    except Exception as error:  # the tracer runs the user's forward
        raise TraceError(
            f"{type(flat.model).__name__} runs but cannot be traced for counting: {type(error).__name__}: {error}; "
            f"a forward that turns tensors into other objects (NumPy arrays, custom autograd) has to be split off"
        ) from error
    return analysis


# -- operators fvcore does not count, or counts wrongly for broadcast, one-dimensional or unbatched


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _product(left: int, right: int) -> Callable[[list[Any], list[Any]], int]:
    """A product of tensors: every element of the result sums over the last dimension of the left operand."""

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        # Not from the result: addmv and the like may broadcast it with the addend.
        a, b = _shape(inputs[left]), _shape(inputs[right])
        batch = itertools.zip_longest(reversed(a[:-2]), reversed(b[:-2]), fillvalue=1)
        columns = b[-1] if len(b) > 1 else 1
        return math.prod(max(sizes) for sizes in batch) * math.prod(a[-2:]) * columns

    return handle


def _linear(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Fused attention: queries with keys, then weights with values; heads of grouped queries count as repeated."""
    *batch, queries, values = _shape(outputs[0])
    keys, width = _shape(inputs[1])[-2:]
    return math.prod(batch) * queries * keys * (width + values)


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * (_shape(inputs[0])[-1] + 1) * _shape(inputs[1])[-1]


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """A convolution whose padding is a word, which fvcore does not know."""
    images, _, *places = _shape(outputs[0])
    return images * math.prod(places) * math.prod(_shape(inputs[1]))


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    summed: list[int] = inputs[2].toIValue() or [value.toIValue() for value in inputs[2].node().inputs()]
    shape = _shape(inputs[0])
    return math.prod(_shape(outputs[0])) * math.prod(shape[dim] for dim in summed)


def _matrix_chain(inputs: list[Any], outputs: list[Any]) -> int:
    """A product of several matrices, in the cheapest order, which torch looks for too."""
    shapes = [_shape(value) for value in inputs[0].node().inputs()]
    sides = [shapes[0][0] if len(shapes[0]) > 1 else 1, *(shape[0] for shape in shapes[1:])]
    sides.append(shapes[-1][1] if len(shapes[-1]) > 1 else 1)

    @functools.cache
    def cost(first: int, last: int) -> int:
        splits = (
            cost(first, k) + cost(k, last) + sides[first] * sides[k] * sides[last] for k in range(first + 1, last)
        )
        return min(splits, default=0)

    return cost(0, len(sides) - 1)


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Every step multiplies with each weight matrix once."""
    packed = inputs[3].node().kind() == "prim::ListConstruct"
    weights = [_shape(value) for value in inputs[3 if packed else 2].node().inputs()]
    steps = math.prod(_shape(inputs[0])[:-1])
    return steps * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Operands are contracted from left to right, as torch does without a path; no sum, no multiply-adds."""
    equation = str(inputs[0].toIValue()).replace(" ", "")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    terms, result = _einsum_terms(equation, shapes)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    total, left = 0, set(terms[0])
    for index, term in enumerate(terms[1:], 1):
        later = set(result).union(*terms[index + 1 :])
        shared = left & set(term)
        used = shared | ((left | set(term)) & later)  # a letter of one operand alone is summed before multiplying
        if shared - later:
            total += math.prod(sizes[letter] for letter in used)
        left = used & later
    return total


def _einsum_terms(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str]:
    """The operands' letters and the result's, with digits for the dimensions under an ellipsis."""
    left, arrow, result = equation.partition("->")
    written = left.split(",")
    dots = [
        len(shape) - len(term.replace("...", "")) if "..." in term else 0
        for term, shape in zip(written, shapes, strict=True)
    ]
    digits = "0123456789"[: max(dots)]
    terms = [term.replace("...", digits[len(digits) - n :]) for term, n in zip(written, dots, strict=True)]
    if not arrow:
        letters = Counter(left.replace("...", "").replace(",", ""))
        return terms, digits + "".join(sorted(letter for letter, uses in letters.items() if uses == 1))
    return terms, result.replace("...", digits)


_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "linear": _linear,
    "matmul": _product(0, 1),
    "mm": _product(0, 1),
    "bmm": _product(0, 1),
    "mv": _product(0, 1),
    "dot": _product(0, 1),
    "addmm": _product(1, 2),
    "addmv": _product(1, 2),
    "addbmm": _product(1, 2),
    "baddbmm": _product(1, 2),
    "einsum": _einsum,
    "tensordot": _tensordot,
    "linalg_multi_dot": _matrix_chain,
    "chain_matmul": _matrix_chain,
    "_convolution_mode": _convolution,
    "bilinear": _bilinear,
    "scaled_dot_product_attention": _attention,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
    "rnn_relu": _recurrent,
}
_CONTRACTIONS = ("conv", *_HANDLES)
