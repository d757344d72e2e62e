"""The report: what it says of a run, the page's parts, and the page in a real browser."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from netaug_fx.training import run
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.pages import si
from netaug_fx.training.plots import accuracy_curves, loss_curves
from netaug_fx.training.report import compare, verdict
from tests.netaug_fx.browsing import open_in_browser, parse

PARTS = ["summary", "verified", "verdict", "curves", "macs", "verification", "widths", "picture", "pins", "files"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(TrainConfig, None, {"optim.epochs": 2, "data.batch_size": 256})
    return run.start(config, tmp_path_factory.mktemp("runs") / "report")


def test_the_page_has_all_parts_and_fetches_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = parse(text)
    assert [part for part in PARTS if part not in page.ids] == []
    assert [address for address in page.fetched if not address.startswith(("#", "data:"))] == []
    assert re.findall(r"url\(\s*['\"]?(?!#)|@import", text) == []


def test_the_page_shows_what_the_report_holds(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    report = json.loads((folder / "report.json").read_text())
    for arm in report["arms"].values():
        assert f"{arm['val_accuracy']:.1%}" in text
    assert f"{report['macs']['tiny']['macs']:,}" in text
    assert all(group["name"] in text for group in report["groups"])
    assert all(check["name"] in text for check in report["verification"]["checks"])
    assert verdict(report["comparison"], report["data"]["val_images"]) in text


def arms(baseline: float, netaug: float) -> dict[str, dict[str, Any]]:
    return {"baseline": {"val_accuracy": baseline}, "netaug": {"val_accuracy": netaug}}


@pytest.mark.parametrize(
    ("baseline", "netaug", "better", "noise", "words"),
    [
        (0.90, 0.91, "netaug", True, "NetAug ends 1.00 points above the baseline: 4 more of 400"),
        (0.91, 0.90, "baseline", True, "The baseline ends 1.00 points above NetAug"),
        (0.90, 0.90, "neither", True, "Both arms end with the same accuracy"),
        (0.50, 0.90, "netaug", False, "this one is larger"),
    ],
)
def test_the_verdict_is_as_sure_as_the_figures(
    baseline: float, netaug: float, better: str, noise: bool, words: str
) -> None:
    comparison = compare(arms(baseline, netaug), 400)
    assert comparison is not None
    assert (comparison["better"], comparison["within_noise"]) == (better, noise)
    assert words in verdict(comparison, 400)
    assert ("does not rank them" in verdict(comparison, 400)) == noise
    assert "one learning rate" in verdict(comparison, 400)


def test_one_arm_is_not_compared() -> None:
    assert compare({"baseline": {"val_accuracy": 0.5}}, 10) is None
    assert "nothing to compare" in verdict(None, 10)


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12"), (999, "999"), (5434, "5.43k"), (117856, "118k"), (23_499_000, "23.5M"), (2e9, "2G")]
)
def test_counts_are_shortened(value: float, text: str) -> None:
    assert si(value) == text


def test_curves_are_text_and_the_same_for_the_same_figures() -> None:
    row = {"train_accuracy": 0.5, "val_accuracy": 0.6, "train_loss": 1.0}
    history = {
        "baseline": [{**row, "epoch": epoch} for epoch in (1, 2)],
        "netaug": [{**row, "epoch": epoch, "augmented_loss": 2.0} for epoch in (1, 2)],
    }
    first, loss = accuracy_curves(history, 1), loss_curves(history, 1)
    assert first == accuracy_curves(history, 1)
    assert "stream widths fixed from here" in first
    assert "wider nets around it" in loss
    assert all(text.startswith("<svg") and "<metadata" not in text for text in (first, loss))


def test_a_browser_shows_the_page_without_an_error(folder: Path, tmp_path: Path) -> None:
    shown = open_in_browser(folder / "report.html", tmp_path / "profile", "--dump-dom")
    page = parse(shown.stdout)
    assert [part for part in PARTS if part not in page.ids] == []
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    # The page's script takes the plain tooltips out once it runs: it did, and without an error.
    assert 'data-tip="' in shown.stdout
    assert re.findall(r"data-tip=[^>]*><title>", shown.stdout) == []


def test_a_browser_reacts_to_the_pointer(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "pointed.html"
    script = """<script>
      const line = document.querySelector("svg.groups .group line.hit");
      line.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: 5, clientY: 5}));
      document.title = "tip: " + document.getElementById("tip").textContent;
    </script></body>"""
    page.write_text((folder / "report.html").read_text().replace("</body>", script))
    shown = open_in_browser(page, tmp_path / "profile", "--dump-dom")
    first = json.loads((folder / "report.json").read_text())["groups"][0]
    assert f"<title>tip: {first['name']} ({first['kind']})" in shown.stdout
    assert 'class="groups focus"' in shown.stdout


def test_a_browser_draws_the_page(folder: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    open_in_browser(folder / "report.html", tmp_path / "profile", f"--screenshot={shot}", "--hide-scrollbars")
    from PIL import Image

    with Image.open(shot) as image:
        assert image.size == (1200, 2400)
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 100  # text, cards, curves and lines, not a blank page
