"""ONNX export: names, batch, opsets, whole files, quiet, and what ONNX Runtime computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from netaug_fx.errors import ExportError, InputError
from netaug_fx.passes.onnx_export import export_onnx, run_onnx


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


@dataclass
class Detection:
    boxes: Tensor
    scores: Tensor


class ManyOutputs(nn.Module):
    """Nested inputs; outputs of the kind asked for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(4, 2), nn.Linear(6, 2)

    def forward(self, left: Tensor, right: dict[str, Tensor]) -> Any:
        a, b = self.a(left), self.b(right["x"])
        return {
            "tuple": (a, b),
            "dict": {"logits": a + b, "left": a, "nested": [a, b]},
            "dataclass": Detection(a, b),
            "single": a * b,
        }[self.kind]


def names(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [entry.name for entry in graph.input], [entry.name for entry in graph.output]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvNet, Path]:
    torch.manual_seed(0)
    model = ConvNet().train()
    model.norm.running_mean.normal_()  # type: ignore[union-attr,operator]
    return model, export_onnx(model, tmp_path_factory.mktemp("onnx") / "sub" / "net.onnx", torch.rand(1, 3, 8, 8))


def test_one_file_with_stable_names(exported: tuple[ConvNet, Path]) -> None:
    model, path = exported
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]
    assert names(path) == (["x"], ["output"])
    graph = onnx.load(path).graph
    dims = [entry.type.tensor_type.shape.dim[0].dim_param for entry in (*graph.input, *graph.output)]
    assert dims == ["batch", "batch"]
    weights = {tensor.name for tensor in graph.initializer}
    assert {"conv.weight", "head.weight", "head.bias"} <= weights
    assert not any(name.startswith("model.") for name in weights)
    assert model.training


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_runtime_agrees_at_any_batch(exported: tuple[ConvNet, Path], batch: int) -> None:
    model, path = exported
    x = torch.rand(batch, 3, 8, 8)
    with torch.no_grad():
        expected = ConvNet.forward(model.eval(), x)
    model.train()
    (actual,) = run_onnx(path, x)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run_onnx(path, {"x": x.numpy()})[0], actual)
    np.testing.assert_array_equal(run_onnx(path, (x,))[0], actual)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("single", ["output"]),
        ("tuple", ["output_0", "output_1"]),
        ("dict", ["logits", "output_left", "nested_0", "nested_1"]),  # "left" is an input already
        ("dataclass", ["boxes", "scores"]),
    ],
)
def test_many_inputs_and_outputs(tmp_path: Path, kind: str, outputs: list[str]) -> None:
    model = ManyOutputs(kind)
    example = {"left": torch.rand(2, 4), "right": {"x": torch.rand(2, 6)}}
    path = export_onnx(model, tmp_path / "net.onnx", example)
    assert names(path) == (["left", "right_x"], outputs)
    left, right = torch.rand(3, 4), torch.rand(3, 6)
    results = dict(zip(outputs, run_onnx(path, [left, right]), strict=True))
    with torch.no_grad():
        expected = model(left, {"x": right})
    first = {"single": "output", "tuple": "output_0", "dict": "output_left", "dataclass": "boxes"}[kind]
    wanted = {
        "single": lambda: expected,
        "tuple": lambda: expected[0],
        "dict": lambda: expected["left"],
        "dataclass": lambda: expected.boxes,
    }[kind]()
    np.testing.assert_allclose(results[first], wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_positional_arguments_without_names(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return tensors[0] + 2 * tensors[1]

    path = export_onnx(Sum(), tmp_path / "sum.onnx", (torch.rand(2, 3), torch.rand(2, 3)))
    assert names(path) == (["input", "input_1"], ["output"])


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(3, 2), tmp_path / "net.onnx", torch.rand(4, 3), dynamic_batch=False)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    with pytest.raises(ExportError, match="ONNX Runtime cannot run"):
        run_onnx(path, torch.rand(2, 3))


def test_an_in_place_activation_whose_input_is_read_again(tmp_path: Path) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            z = torch.relu_(y)
            return y + 2 * z  # y was rectified too

    model = Reads()
    path = export_onnx(model, tmp_path / "net.onnx", torch.rand(2, 3))
    x = torch.randn(4, 3)
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(path, x)[0], model(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [18, 20])
def test_an_opset_that_can_be_had(tmp_path: Path, opset: int) -> None:
    path = export_onnx(nn.Linear(3, 2), tmp_path / "net.onnx", torch.rand(2, 3), opset=opset)
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [opset]


@pytest.mark.parametrize("opset", [9, 99])
def test_an_opset_that_cannot(tmp_path: Path, opset: int) -> None:
    (tmp_path / "net.onnx").write_text("old")
    with pytest.raises(ExportError, match=rf"opset={opset} cannot be had for Linear: .* ask for 18 to \d+"):
        export_onnx(nn.Linear(3, 2), tmp_path / "net.onnx", torch.rand(2, 3), opset=opset)
    assert (tmp_path / "net.onnx").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if float(x.sum()) > 0 else x


def test_failures_name_the_model_and_leave_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Unexportable().train()
    with pytest.raises(ExportError, match=r"Unexportable cannot be captured by torch.export: "):
        export_onnx(model, tmp_path / "net.onnx", torch.rand(2, 3))
    with pytest.raises(ExportError, match=r"Linear does not run on the example inputs"):
        export_onnx(nn.Linear(3, 2), tmp_path / "net.onnx", torch.rand(2, 5))
    with pytest.raises(InputError, match="example_inputs"):
        export_onnx(nn.Linear(3, 2), tmp_path / "net.onnx", ())
    assert list(tmp_path.iterdir()) == []
    assert model.training
    assert capfd.readouterr() == ("", "")


def test_a_batch_fixed_by_the_forward_is_explained(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 12).sum(1)

    with pytest.raises(ExportError, match="dynamic_batch=False"):
        export_onnx(Fixed(), tmp_path / "net.onnx", torch.rand(2, 3, 4))
    path = export_onnx(Fixed(), tmp_path / "net.onnx", torch.rand(2, 3, 4), dynamic_batch=False)
    assert run_onnx(path, torch.ones(2, 3, 4))[0].tolist() == [12.0, 12.0]


def test_export_prints_nothing_and_leaves_the_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = ConvNet().train()
    model.norm.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    export_onnx(model, tmp_path / "net.onnx", torch.ones(2, 3, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()
    assert [module.training for module in model.children()] == [True, False, True, True]


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no")
    with pytest.raises(ExportError, match=r"cannot run .*bad\.onnx"):
        run_onnx(tmp_path / "bad.onnx", torch.rand(1))
