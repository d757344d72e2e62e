"""The page of ``inspect``: the picture of the groups, its tables, and a net of 300 layers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx import models
from netaug_fx.inspection import Inspection
from netaug_fx.passes.graph import Group, Pin
from netaug_fx.training.group_picture import draw, lay_out, layers_of
from tests.netaug_fx.browsing import open_in_browser, parse


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
    shape = re.search(r'class="groups" viewBox="0 0 (\d+) (\d+)"', picture)
    assert shape is not None
    width, height = (int(value) for value in shape.groups())
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
    text = netaug_fx.inspect(net).to_html("digits_net")
    page = parse(text)
    assert {"widths", "picture", "pins"} <= set(page.ids)
    assert "missing" not in page.ids
    assert [address for address in page.fetched if not address.startswith(("#", "data:"))] == []
    assert "<h1>digits_net</h1>" in text


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, data: Tensor) -> Tensor:
        return data + self.third(self.second(self.first(data)).relu()).relu()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def deep() -> Inspection:
    """A net of 302 layers in 100 blocks, of which one runs an operator without a rule."""
    net = nn.Sequential(nn.Linear(3, 8), *(Residual() for _ in range(100)), Inverse(), nn.Linear(8, 2))
    return netaug_fx.inspect(net, 2, example_inputs=torch.rand(8, 3))


class Inverse(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return torch.linalg.pinv(data).t()


def test_the_page_of_a_deep_net_has_each_layer_and_group_once_and_stays_small(deep: Inspection) -> None:
    text = deep.to_html()
    layers = ["0", *(f"{block}.{name}" for block in range(1, 101) for name in ("first", "second", "third")), "102"]
    assert re.findall(r'data-layer="([^"]*)"', text) == layers
    names = [group.name for group in deep.groups]
    assert len(names) == 200
    assert re.findall(r'<tr data-name="([^"]*)"', text) == names
    assert sorted(re.findall(r'data-group="g\d+" data-name="([^"]*)"', text)) == sorted(names)
    assert len(text) < 2_000 * len(layers)


def test_the_page_names_missing_rules(deep: Inspection) -> None:
    text = deep.to_html()
    assert deep.missing
    assert "missing" in parse(text).ids
    for each in deep.missing:
        assert f'<td class="mono">{each.name}</td>' in text
    assert "docs/extending.md" in text


def test_a_browser_finds_modules_and_sorts_groups(deep: Inspection, tmp_path: Path) -> None:
    page = tmp_path / "deep.html"
    script = """<script>
      const find = document.querySelector("#find input");
      const rows = () => [...document.querySelectorAll("#widths tbody tr")];
      const heads = document.querySelectorAll("table.sortable th"), name = () => rows()[0].dataset.name;
      heads[0].click(); const up = name(); heads[0].click(); const down = name();
      find.value = "57.second"; find.dispatchEvent(new Event("input"));
      const shown = rows().filter(row => !row.hidden).map(row => row.dataset.name).sort();
      document.title = [up, down, document.querySelectorAll(".layer.hit").length, ...shown].join(" ");
    </script></body>"""
    page.write_text(deep.to_html().replace("</body>", script))
    shown = open_in_browser(page, tmp_path / "profile", "--dump-dom")
    assert "<title>1.first 100.second 1 57.first 57.second</title>" in shown.stdout
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
