"""Inference: what it finds, and that the model is exactly as it was afterwards."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netaug_fx.errors import InputError, TraceError
from netaug_fx.passes import channels
from netaug_fx.passes.copying import copy_model
from netaug_fx.passes.infer import infer, output_tensors
from tests.passes.watching import Apply, analysed, free, tied, why


class Bottleneck(nn.Module):
    def __init__(self, width: int = 8, inner: int = 12) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.project = nn.Conv2d(inner, width, 1)

    def forward(self, data: Tensor) -> Tensor:
        return data + self.project(F.relu(self.norm(self.expand(data))))


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), Bottleneck(), Bottleneck(), nn.Flatten(), nn.Linear(8 * 4, 5))


IMAGE = torch.rand(2, 3, 4, 4)


# -- what is found ---------------------------------------------------------------------------------------------------


def test_residual_sums_tie_all_their_writers() -> None:
    analysis = analysed(small_net(), IMAGE)
    types = analysis.tensors
    stream = types["0.weight"][0]
    assert tied(stream, types["1.expand.weight"][1], types["1.project.weight"][0], types["2.project.bias"][0])
    assert free(stream)
    assert tied(types["1.expand.weight"][0], types["1.norm.running_var"][0], types["1.project.weight"][1])
    assert not tied(types["1.expand.weight"][0], types["2.expand.weight"][0])
    assert analysis.statistics == {f"{k}.norm.running_{what}" for k in (1, 2) for what in ("mean", "var")}
    assert analysis.writers["0.weight", 0] == ("0",)
    assert analysis.readers["2.expand.weight", 1] == ("2.expand",)


def test_inputs_and_outputs_stay_with_their_reason() -> None:
    types = analysed(small_net(), IMAGE).tensors
    assert "it is a dimension of the model's input" in why(types["0.weight"][1])
    assert "it is a dimension of the model's output" in why(types["4.weight"][0])


def test_flattened_space_is_a_factor_of_the_classifier() -> None:
    types = analysed(small_net(), IMAGE).tensors
    assert tied(types["4.weight"][1], channels.Product((types["0.weight"][0], channels.Fixed(4))))


def test_a_pin_names_operator_module_and_line() -> None:
    def lines(module: nn.Module, data: Tensor) -> Tensor:
        return data.softmax(1)

    model = nn.Sequential(nn.Linear(3, 6), Apply(lines), nn.Linear(6, 2))
    reason = channels.pin_reason(analysed(model, torch.rand(4, 3)).tensors["0.weight"][0])
    assert reason is not None
    assert (reason.op, reason.module) == ("aten._softmax.default", "1")
    assert reason.location == f"{__file__}:{lines.__code__.co_firstlineno + 1}"


def test_operators_are_recorded_in_both_modes() -> None:
    class ByMode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.extra = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, data: Tensor) -> Tensor:
            hidden = self.main(data)
            return self.extra(hidden.relu()) if self.training else hidden

    analysis = analysed(nn.Sequential(ByMode(), nn.Linear(4, 2)), torch.rand(2, 3))
    assert len(analysis.operators[True]) > len(analysis.operators[False])
    assert tied(analysis.tensors["0.extra.weight"][0], analysis.tensors["1.weight"][1])


def test_keyword_inputs() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 6), nn.Linear(4, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, a: Tensor, *, b: Tensor | None = None, flags: Any = None) -> dict[str, Tensor]:
            hidden = self.left(a)
            if b is not None and flags is not None and flags["use"]:
                hidden = hidden + self.right(b)
            return {"logits": self.head(hidden)}

    inputs = ((torch.rand(2, 3),), {"b": torch.rand(2, 4), "flags": {"use": True}})
    analysis = infer(TwoInputs(), inputs)
    assert tied(analysis.tensors["left.weight"][0], analysis.tensors["right.weight"][0])


def test_tied_weights_are_one_tensor_under_two_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.middle, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.table.weight

        def forward(self, rows: Tensor) -> Tensor:
            return self.head(self.middle(self.table(rows)))  # type: ignore[no-any-return]

    analysis = analysed(Tied(), torch.zeros(2, 5, dtype=torch.int64))
    assert analysis.owners["head.weight"] == "table.weight"
    assert analysis.tensors["head.weight"] is analysis.tensors["table.weight"]
    assert tied(analysis.tensors["middle.weight"][0], analysis.tensors["middle.weight"][1])
    assert free(analysis.tensors["middle.weight"][0])
    assert analysis.readers["table.weight", 1] == ("head",)


def test_a_shared_module_is_tied_over_all_its_uses() -> None:
    shared = nn.Linear(6, 6)
    analysis = analysed(nn.Sequential(nn.Linear(3, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2)), torch.rand(2, 3))
    assert tied(*analysis.tensors["1.weight"], analysis.tensors["0.weight"][0])


def test_written_buffers_are_noted() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 6)
            self.register_buffer("seen", torch.zeros(6))
            self.register_buffer("kept", torch.zeros(6))
            self.register_buffer("replaced", torch.zeros(6))

        def forward(self, data: Tensor) -> Tensor:
            hidden = self.layer(data)
            self.seen.add_(hidden.mean(0))
            self.replaced = self.replaced + hidden.mean(0)
            return hidden + self.kept

    analysis = analysed(nn.Sequential(Counts(), nn.Linear(6, 2)), torch.rand(2, 3))
    assert analysis.mutated == {"0.seen", "0.replaced"}
    assert tied(analysis.tensors["0.seen"][0], analysis.tensors["0.layer.weight"][0])
    assert not analysis.fills_caches


def test_a_cache_filled_by_the_first_call_is_noticed() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 6)
            self.cache: dict[int, Tensor] = {}

        def forward(self, data: Tensor) -> Tensor:
            if len(data) not in self.cache:
                self.cache[len(data)] = torch.arange(6.0)
            return self.layer(data) * self.cache[len(data)]

    model = nn.Sequential(Caches(), nn.Linear(6, 2))
    analysis = analysed(model, torch.rand(2, 3))
    assert analysis.fills_caches
    assert not any("arange" in record.op for record in analysis.operators[False])
    assert model[0].cache == {}  # type: ignore[comparison-overlap]


def test_forwards_with_sizes_are_traced_and_others_left_alone() -> None:
    class Literal(nn.Module):
        def forward(self, data: Tensor) -> Tensor:
            return data.view(2, 6, -1)

    class Opaque(nn.Module):
        def forward(self, data: Tensor, *rest: Tensor) -> Tensor:
            total = sum(float(row.mean()) for row in data)
            return torch.cat([data.view(2, 6, -1).flatten(1), *rest], 1) * total

    model = nn.Sequential(nn.Conv2d(3, 6, 3), Literal(), Opaque(), nn.Linear(24, 2))
    analysis = analysed(model, IMAGE)
    assert "1" in analysis.forwards
    assert analysis.forwards["1"].constants == {}
    assert "torch.fx cannot follow it: TraceError: Proxy object cannot be iterated" in analysis.opaque["2"]
    assert "2" not in analysis.forwards
    assert "3" not in analysis.forwards


def test_a_graph_that_would_run_other_operators_is_not_believed() -> None:
    class Keeps(nn.Module):
        def forward(self, data: Tensor) -> Tensor:
            traced = isinstance(data, torch.fx.Proxy)
            return data.view(2, 6, -1).relu() if traced else data.view(2, 6, -1)

    analysis = analysed(nn.Sequential(nn.Conv2d(3, 6, 3), Keeps(), nn.Flatten(), nn.Linear(24, 2)), IMAGE)
    assert analysis.opaque["1"] == "its traced graph issues other operators than its forward"


# -- the model afterwards --------------------------------------------------------------------------------------------


def test_the_model_is_exactly_as_it_was() -> None:
    class Busy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.calls = 0
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, data: Tensor) -> Tensor:
            self.calls += 1
            self.steps += 1
            return F.dropout(self.net(data), 0.5, self.training) * (1 + random.random())  # type: ignore[no-any-return]

    model = Busy()
    model.net[1].eval()
    for parameter in model.net[2].parameters():
        parameter.requires_grad_(False)
    seen: list[str] = []
    model.net[0].register_forward_hook(lambda module, args, out: seen.append("hook") and None)
    modes = [module.training for module in model.modules()]
    values = {key: value.clone() for key, value in model.state_dict().items()}
    identities = {name: id(tensor) for name, tensor in model.named_parameters()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    numbers = torch.get_rng_state(), random.getstate()
    data = IMAGE.clone()
    analysed(model, data)
    assert model.calls == 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == identities
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[1]
    assert torch.equal(data, IMAGE)
    assert not hasattr(data, "_netaug_dims")
    assert "forward" not in vars(model)


def test_attributes_and_switches_are_put_back_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Apply(lambda _, data: data.no_such_method()))
    model.train()
    fused, gradients = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
    with pytest.raises(TraceError):
        analysed(model, torch.rand(2, 3))
    assert (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()) == (fused, gradients)
    assert all(module.training for module in model.modules())
    assert not model[0]._forward_hooks


def test_nothing_of_the_size_of_the_model_is_made() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    rows = 1 << 40
    model[0].weight = nn.Parameter(torch.zeros(1).expand(rows, 3))  # 12 TiB by shape, 4 bytes by storage
    model[0].bias = nn.Parameter(torch.zeros(1).expand(rows))
    model[1].weight = nn.Parameter(torch.zeros(1).expand(2, rows))
    analysis = analysed(model, torch.rand(2, 3))
    assert tied(analysis.tensors["0.weight"][0], analysis.tensors["1.weight"][1])
    assert analysis.tensors["0.weight"][0].size == rows
    assert free(analysis.tensors["0.weight"][0])


# -- what does not run on fake tensors -------------------------------------------------------------------------------


class BranchesOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, data: Tensor) -> Tensor:
        hidden = self.layer(data)
        if hidden.shape[0] > 1 and float(data.sum()) > 0:
            hidden = hidden.relu()
        return self.head(hidden)  # type: ignore[no-any-return]


def test_control_flow_on_values_falls_back_to_real_tensors() -> None:
    positive = analysed(BranchesOnValues(), torch.ones(2, 3))
    negative = analysed(BranchesOnValues(), -torch.ones(2, 3))
    assert free(positive.tensors["layer.weight"][0])
    assert any("relu" in record.op for record in positive.operators[False])
    assert not any("relu" in record.op for record in negative.operators[False])


def test_the_model_is_untouched_on_real_tensors_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), BranchesOnValues())
    before = copy_model(model).state_dict()
    data = torch.ones(2, 3)
    analysed(model, data)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not hasattr(data, "_netaug_dims")


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_names_the_module_and_the_cause() -> None:
    with pytest.raises(TraceError, match=r"in evaluation mode: in module '1\.expand', RuntimeError: .*example_inputs"):
        analysed(nn.Sequential(nn.Conv2d(3, 7, 3), Bottleneck()), IMAGE)


def test_a_failure_of_the_roots_own_forward_says_so() -> None:
    with pytest.raises(TraceError, match="in its own forward, ValueError: no such luck"):
        analysed(Apply(lambda _, data: (_ for _ in ()).throw(ValueError("no such luck"))), IMAGE)


def test_a_failure_in_one_mode_says_which() -> None:
    class OnlyEval(nn.Module):
        def forward(self, data: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("cannot be trained")
            return data

    with pytest.raises(TraceError, match="in training mode: in module '1', RuntimeError: cannot be trained"):
        analysed(nn.Sequential(nn.Linear(3, 3), OnlyEval()), torch.rand(2, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    with pytest.raises(InputError, match=r"module '1' \(.*\) is scripted.*before torch.jit.script"):
        analysed(nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 3))), torch.rand(2, 3))


def test_lazy_modules_are_refused() -> None:
    with pytest.raises(InputError, match=r"module '0' \(LazyLinear\) is lazy: run the model once"):
        analysed(nn.Sequential(nn.LazyLinear(3)), torch.rand(2, 3))


def test_models_without_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"module '0' \(Linear\) is on the meta device: .*to_empty"):
        analysed(nn.Sequential(nn.Linear(3, 3, device="meta")), torch.rand(2, 3))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(3, 3)
    model.lock = (item for item in ())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"attribute 'lock' of the model \(Linear\) cannot be copied"):
        analysed(model, torch.rand(2, 3))


def test_tensors_of_an_output_in_order() -> None:
    class Answer:
        def __init__(self) -> None:
            self.first, self.more = torch.zeros(1), [torch.ones(1)]
            self.myself = self

    a, b = torch.full((1,), 2.0), torch.full((1,), 3.0)
    assert [float(t) for t in output_tensors([Answer(), {"a": a, "b": (b, None, "text")}])] == [0.0, 1.0, 2.0, 3.0]
