"""The script of each page of docs/recipes is run: in a process of its own, or in two that know of each other."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.netaug_fx import launching
from tests.test_readme import BLOCK

PAGES = Path(__file__).parents[1] / "docs" / "recipes"
EPOCHS = 4


@dataclass(frozen=True)
class Recipe:
    """How a page is tested.

    Attributes:
        source: What the page extracts from.
        stop: A text of the script and what makes of it a run that ends after two epochs; None for a page that does not
            show resuming.
        checkpoint: What a run leaves for the next one.
        processes: Whether the page is for several processes too.
    """

    source: str = "supernet"
    stop: tuple[str, str] | None = None
    checkpoint: str = ""
    processes: bool = True


RECIPES = {
    "pytorch": Recipe("average.module", ("range(start, EPOCHS)", "range(start, 2)"), "last.pt", processes=False),
    "ddp": Recipe(),
    "accelerate": Recipe(stop=("progress.epoch < EPOCHS", "progress.epoch < 2"), checkpoint="checkpoint"),
    "fabric": Recipe(stop=('range(state["epoch"], EPOCHS)', 'range(state["epoch"], 2)'), checkpoint="last.ckpt"),
    "lightning": Recipe(stop=("max_epochs=EPOCHS", "max_epochs=2"), checkpoint="checkpoints"),
    "timm": Recipe("average.module", ("range(start, epochs)", "range(start, 2)"), "last.pth.tar", processes=False),
    # The length of the run decides the learning rates, so the rest of a whole run is forgotten instead.
    "transformers": Recipe(stop=("", ""), checkpoint="checkpoints"),
}

# Runs after a page's script, in the same process.
REPORT = """
import hashlib, json, os
from netaug_fx.elastic import is_elastic
from netaug_fx.supernet import STATE_KEY

def _digest(tensors):
    return hashlib.sha256(b"".join(value.detach().cpu().numpy().tobytes() for value in tensors)).hexdigest()

def _logits(net):
    with torch.no_grad():
        output = net.eval()(images)
    return getattr(output, "logits", output)

_found = {
    "exact": torch.equal(_logits(tiny), _logits(SOURCE)),
    "verified": VERIFY and netaug_fx.verify(tiny, model, images[:2], onnx=False).passed,
    "plain": "forward" not in vars(tiny) and not any(is_elastic(module) for module in tiny.modules()),
    "tiny": _digest(tiny.state_dict().values()),
    "parameters": _digest(supernet.parameters()),
    "statistics": _digest(value for name, value in supernet.named_buffers() if name.endswith("running_mean")),
    "draws": supernet.state_dict()[STATE_KEY].tolist()[1],
}
with open(f"rank-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(_found, file)
"""


def script(page: str) -> str:
    """The one script of a page."""
    (text,) = (
        text
        for language, text in BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
        if language == "python"
    )
    return text


def run(page: str, folder: Path, *, text: str | None = None, processes: int = 1, verify: bool = False) -> list[float]:
    """Runs a page's script in a folder, with the report after it; returns the losses that it printed."""
    folder.mkdir(exist_ok=True)
    report = REPORT.replace("SOURCE", RECIPES[page].source).replace("VERIFY", str(verify))
    program = folder / "train.py"
    program.write_text((script(page) if text is None else text) + report, encoding="utf-8")
    printed = "".join(launching.launch(launching.script, program, folder=folder, processes=processes))
    return [float(loss) for loss in re.findall(r"^epoch \d+: loss ([\d.]+)$", printed, re.MULTILINE)]


def found(folder: Path, rank: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
    return result


def assert_trained(losses: list[float], report: dict[str, Any]) -> None:
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.8 * losses[0]
    assert report["draws"] > 0
    assert report["exact"]
    assert report["plain"]


def test_every_page_is_tested_and_listed() -> None:
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(RECIPES)
    assert set(re.findall(r"^\| \[\w+\.md\]\((\w+)\.md\)", index, re.MULTILINE)) == set(RECIPES)
    assert not [language for language, _ in BLOCK.findall(index) if language == "python"]


@pytest.mark.parametrize("page", [page for page, recipe in RECIPES.items() if recipe.stop])
def test_a_recipe_trains_extracts_and_resumes(page: str, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    losses = run(page, whole, verify=True)
    expected = found(whole)
    assert_trained(losses, expected)
    assert expected.pop("verified")

    recipe = RECIPES[page]
    assert recipe.stop is not None
    if all(recipe.stop):
        assert script(page).count(recipe.stop[0]) == 1
        assert run(page, halves, text=script(page).replace(*recipe.stop)) == losses[:2]
    else:
        checkpoints = sorted((whole / recipe.checkpoint).iterdir(), key=lambda path: int(path.name.split("-")[1]))
        for path in checkpoints[:2]:
            shutil.copytree(path, halves / recipe.checkpoint / path.name)
    assert (halves / recipe.checkpoint).exists()
    assert run(page, halves)[-2:] == losses[-2:]
    assert found(halves).items() >= expected.items()


@pytest.mark.parametrize("page", [page for page, recipe in RECIPES.items() if recipe.processes])
def test_two_processes_see_different_images_and_end_with_the_same_weights(page: str, tmp_path: Path) -> None:
    losses = run(page, tmp_path, processes=2)
    first, second = (found(tmp_path, rank) for rank in range(2))
    # Trainer prints in every process, and the lines of two may come in any order
    assert_trained(list(dict.fromkeys(losses))[-EPOCHS:], first)
    assert first["parameters"] == second["parameters"]
    assert first["draws"] == second["draws"]
    assert first["statistics"] != second["statistics"]


def test_preparing_the_supernet_itself_is_what_the_page_on_accelerate_warns_of(tmp_path: Path) -> None:
    """The wrapper is there for a reason: without it, extract refuses."""
    direct = script("accelerate").replace("nn.Sequential(supernet)", "supernet")
    direct = direct.replace("extract(supernet)", "extract(accelerator.unwrap_model(wrapped))")
    assert direct.count("supernet") < script("accelerate").count("supernet")
    with pytest.raises(AssertionError, match=r"forward of the supernet was replaced after augment"):
        run("accelerate", tmp_path, text=direct)
