"""The verbs that look at nets or write them: ``inspect``, ``count``, ``verify`` and ``export``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netaug_fx.errors import InputError
from netaug_fx.training.options import Channels, Classes, ImageSize, JsonFile, ModelName, ModelOption, WeightsFile
from netaug_fx.training.training_verbs import parse_ratio

if TYPE_CHECKING:
    from torch import Tensor, nn


def inspect(
    model: ModelName,
    ratio: Annotated[str, typer.Option(help="Widest over present width, as in `train`.")] = "3",
    pin: Annotated[
        list[str] | None, typer.Option(help="Module paths (globs) that keep their width; repeatable.")
    ] = None,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
    json_file: JsonFile = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also draw the groups on a page.")] = None,
) -> None:
    """Show a model's channel groups (what grows, what is tied together, what is pinned and why) and its stages."""
    import netaug_fx

    net, image = _net_and_image(model, num_classes, in_channels, image_size)
    inspection = netaug_fx.inspect(net, parse_ratio(ratio), example_inputs=image, pin=tuple(pin or ()))
    typer.echo(str(inspection))
    _write_json(inspection.to_dict(), json_file)
    _write(html, lambda: inspection.to_html(model))


def count(
    model: ModelName,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
    json_file: JsonFile = None,
) -> None:
    """Count a model's parameters and multiply-adds for one image."""
    from netaug_fx.passes.macs import count as count_macs

    net, image = _net_and_image(model, num_classes, in_channels, image_size)
    result = count_macs(net, None if image is None else image[:1])
    typer.echo(f"{model}: {result.macs:,} MACs, {result.params:,} parameters\n{result.includes}")
    _write_json(result.to_dict(), json_file)


def verify(
    weights: WeightsFile,
    model: ModelOption = None,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
    json_file: JsonFile = None,
) -> None:
    """Prove that trained weights make the very model they are said to be: graph, costs, and ONNX Runtime's outputs."""
    from netaug_fx.passes.verify import verify as verify_net

    net, original, image = _net_from_weights(weights, model, num_classes, in_channels, image_size)
    report = verify_net(net, original, None if image is None else image[:1])
    typer.echo(str(report))
    _write_json(report.to_dict(), json_file)
    if not report.passed:
        raise typer.Exit(1)


def export(
    weights: WeightsFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The ONNX file to write.")] = Path("tiny.onnx"),
    opset: Annotated[int | None, typer.Option("--opset", min=1, help="Default: the exporter's own.")] = None,
    decoded: Annotated[
        bool, typer.Option("--decoded", help="Of a detector: with decoding, to boxes and scores.")
    ] = False,
    model: ModelOption = None,
    num_classes: Classes = None,
    in_channels: Channels = None,
    image_size: ImageSize = None,
) -> None:
    """Write a trained net as one ONNX file."""
    from netaug_fx.models.detection import Decoded, Detector
    from netaug_fx.passes.onnx_export import export_onnx
    from netaug_fx.training.checkpoint import writing

    net, _, image = _net_from_weights(weights, model, num_classes, in_channels, image_size)
    if decoded:
        if not isinstance(net, Detector):
            raise InputError(f"--decoded is for detectors of the zoo; {weights} has weights of a {type(net).__name__}")
        net = Decoded(net).eval()
    with writing(out):
        export_onnx(net, out, image, opset=opset)
    typer.echo(f"wrote {out}")


def _net_and_image(
    name: str, num_classes: int | None, in_channels: int | None, image_size: int | None
) -> tuple[nn.Module, Tensor | None]:
    """A net, and two images of the size asked for or that it was made for; None leaves the search to the passes."""
    import torch

    from netaug_fx.training.model_loading import load_model, natural_input_shape

    net = load_model(name, num_classes=num_classes, in_channels=in_channels).eval()
    shape = natural_input_shape(net)
    if image_size is None and shape is None:
        return net, None
    channels = in_channels or (shape[0] if shape else 3)
    side = [image_size, image_size] if image_size else list(shape or ())[1:]
    return net, torch.randn(2, channels, *side, generator=torch.Generator().manual_seed(0))


def _net_from_weights(
    weights: Path, name: str | None, num_classes: int | None, in_channels: int | None, image_size: int | None
) -> tuple[nn.Module, nn.Module, Tensor | None]:
    """The net with the file's weights, the same net without them, and images for it."""
    from netaug_fx.candidates import rebuilt
    from netaug_fx.training.checkpoint import load_weights, put_weights
    from netaug_fx.training.model_loading import load_cut

    tensors, facts = load_weights(weights)
    name = name or facts.get("model")
    if name is None:
        raise InputError(f"{weights} does not say which model it is of. Give --model NAME.")
    classes = num_classes or facts.get("num_classes")
    channels = in_channels or facts.get("in_channels")
    kwargs = facts.get("model_kwargs", {}) if name == facts.get("model") else {}
    _, image = _net_and_image(name, classes, channels, image_size or facts.get("image_size"))
    cuts = facts.get("cuts", [])
    net, original = (
        load_cut(name, cuts, image, num_classes=classes, in_channels=channels, kwargs=kwargs).eval() for _ in range(2)
    )
    if "enlarged" in facts:  # of a net that `enlarge` grew
        _, first = _net_and_image(name, classes, channels, facts["enlarged"]["image_size"])
        net, original = (
            rebuilt(small, facts["enlarged"]["changes"], example_inputs=first).eval() for small in (net, original)
        )
    put_weights(net, tensors, weights, name)
    return net, original, image


def _write_json(content: dict[str, Any], file: Path | None) -> None:
    _write(file, lambda: json.dumps(content, indent=1) + "\n")


def _write(file: Path | None, make: Callable[[], str]) -> None:
    """Write what ``make`` gives, where a file was asked for."""
    if file is None:
        return
    from netaug_fx.atomic import write_text
    from netaug_fx.training.checkpoint import writing

    with writing(file):
        write_text(file, make())
    typer.echo(f"wrote {file}")
