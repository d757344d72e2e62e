"""The report: what it says of a run, the page's parts, and the page in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import netaug_fx
from netaug_fx import models
from netaug_fx.passes.graph import Group, Pin
from netaug_fx.training import run
from netaug_fx.training.config import load_config
from netaug_fx.training.group_picture import draw, lay_out, layers_of
from netaug_fx.training.plots import accuracy_curves, loss_curves
from netaug_fx.training.report import compare, inspection_page, si, verdict

PARTS = ["summary", "verified", "verdict", "curves", "macs", "verification", "widths", "picture", "pins", "files"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(None, {"optim.epochs": 2, "data.batch_size": 256})
    return run.start(config, tmp_path_factory.mktemp("runs") / "report")


class Page(HTMLParser):
    """Collects ids, and everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "srcset", "href", "xlink:href", "data", "action") and tag != "a":
                self.fetched.append(str(value))


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


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


def test_the_picture_shows_every_layer_and_group() -> None:
    net = models.create("digits_net")
    inspection = netaug_fx.inspect(net)
    picture = draw(net, inspection.groups, inspection.pins)
    layers = [path for path, module in net.named_modules() if list(module.parameters(recurse=False))]
    assert re.findall(r'data-layer="([^"]*)"', picture) == layers
    assert re.findall(r'data-name="([^"]*)"', picture) == [
        lane.group.name for lane in lay_out(layers_of(net), inspection.groups)
    ]
    assert "it is a dimension of the model" in picture
    for group in inspection.groups:
        assert f"width {group.width}; may be {' / '.join(map(str, group.choices))}" in picture


def test_lines_of_groups_that_meet_never_share_a_column() -> None:
    net = models.create("mobilenet_v3_035")
    inspection = netaug_fx.inspect(net)
    lanes = lay_out(layers_of(net), inspection.groups)
    assert {lane.group.name for lane in lanes} == {group.name for group in inspection.groups}
    for lane in lanes:
        for other in lanes:
            if lane is not other and lane.column == other.column:
                assert lane.rows[-1] < other.rows[0] or other.rows[-1] < lane.rows[0]


def test_a_net_of_three_hundred_layers_stays_narrow() -> None:
    layers = [(f"layer{n}", nn.Linear(8, 8)) for n in range(300)]
    net = nn.Sequential()
    for name, layer in layers:
        net.add_module(name, layer)
    groups = [
        Group(f"layer{n}", "inner", 8, (8, 16), (f"layer{n}",), (f"layer{n + 1}",), (f"layer{n}", f"layer{n + 1}"))
        for n in range(299)
    ]
    lanes = lay_out(layers_of(net), groups)
    assert max(lane.column for lane in lanes) - min(lane.column for lane in lanes) == 1
    picture = draw(net, groups, [])
    width, height = (int(value) for value in re.search(r'viewBox="0 0 (\d+) (\d+)"', picture).groups())  # type: ignore[union-attr]
    assert width < 1000
    assert height > 300 * 15


def test_names_and_reasons_are_escaped() -> None:
    pin = Pin("<b>.weight", 0, 4, 'it says "no" & <stops>', "aten.view", "<b>", "net.py:3")
    net = nn.Sequential()
    net.add_module("<b>", nn.Linear(4, 4))
    picture = draw(net, [], [pin])
    assert "<b>" not in picture
    assert "&lt;stops&gt; [aten.view, net.py:3]" in picture


def test_a_page_without_a_run_shows_a_models_groups() -> None:
    net = models.create("digits_net")
    inspection = netaug_fx.inspect(net)
    page = parse(inspection_page("digits_net", net, inspection.groups, inspection.pins))
    assert {"widths", "picture", "pins"} <= set(page.ids)


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


def open_in_browser(page: Path, scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH; on Debian: apt-get install chromium")
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1200,2400", f"--user-data-dir={scratch}", "--enable-logging=stderr",
    ]  # fmt: skip
    return subprocess.run(
        [browser, *flags, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


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
