"""The command line: its verbs, in the order in which ``--help`` shows them, each with an example."""

from __future__ import annotations

from collections.abc import Callable

import typer

from netaug_fx.training import enlarge_verb, model_verbs, training_verbs

VERBS: dict[Callable[..., None], str] = {
    training_verbs.train: "netaug-fx train --data path/to/images --model mobilenet_v2_tiny --epochs 20",
    training_verbs.evolve: "netaug-fx evolve --data path/to/images --model resnet18 --keep 0.5 --generations 5",
    enlarge_verb.enlarge: "netaug-fx enlarge --data path/to/images --model ghostnet --times 4 --jobs 4",
    training_verbs.finetune: "netaug-fx finetune runs/pretrained/tiny.safetensors --data path/to/images --epochs 50",
    model_verbs.inspect: "netaug-fx inspect mobilenet_v2_tiny --html groups.html",
    model_verbs.count: "netaug-fx count mobilenet_v2_tiny --image-size 144",
    model_verbs.verify: "netaug-fx verify runs/demo/tiny.safetensors --model digits_net",
    model_verbs.export: "netaug-fx export runs/demo/tiny.safetensors --out tiny.onnx --opset 18",
}

app = typer.Typer(
    name="netaug-fx",
    help="Train a tiny net inside a wider one that shares its weights (Network Augmentation), or a net in generations "
    "that hand on a part of it (Knowledge Evolution), or grow one to a budget (Greedy Network Enlarging).",
    epilog="Start with: netaug-fx train. Add --debug to any command to see the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for verb, example in VERBS.items():
    app.command(epilog=f"Example: {example}")(verb)
