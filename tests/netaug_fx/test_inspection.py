"""What ``inspect`` shows: as data, as JSON and as a table."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError
from netaug_fx.inspection import Inspection


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm([8])
        self.middle, self.head = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, data: Tensor) -> Tensor:
        features = self.norm(self.stem(data).mean((2, 3)))
        start = int(random.random())  # a graph would freeze it
        return self.head(self.middle(features).softmax(1)[:, start:])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    return netaug_fx.inspect(Net(), 2, example_inputs=torch.rand(2, 3, 8, 8))


def test_groups_pins_and_graph(inspection: Inspection) -> None:
    assert [(group.name, group.choices) for group in inspection.groups] == [("stem", (8, 12, 16))]
    softmax = next(pin for pin in inspection.pins if (pin.tensor, pin.dim) == ("middle.weight", 0))
    assert softmax.op == "aten._softmax.default"
    assert softmax.module == ""
    assert isinstance(inspection.graph, nx.DiGraph)
    assert inspection.graph.has_edge(("tensor", "norm.weight"), ("group", "stem"))
    assert inspection.modules["stem"] == "Conv2d"
    assert "Python's random module" in inspection.opaque[""]
    assert inspection.mixing
    assert "layer_norm" in inspection.mixing[0]


def test_the_growing_share_counts_weight_matrices(inspection: Inspection) -> None:
    stem, middle, head = 8 * 3 * 9, 8 * 6, 6 * 5
    assert inspection.growing_share == pytest.approx((stem + middle) / (stem + middle + head))


def test_stages_are_shown(inspection: Inspection) -> None:
    net = netaug_fx.models.digits_net()
    shown = netaug_fx.inspect(net, 2)
    second = json.loads(json.dumps(shown.to_dict()))["stages"][1]
    assert (second["positions"], second["stream_widths"], second["inner_widths"]) == (64, [8], [24])
    assert second["blocks"] == ["blocks.0", "blocks.1"]
    lines = shown.stages_table().splitlines()
    assert lines[0] == "4 stages:"
    assert lines[4].split() == ["blocks.0.body.project.conv", "64", "8", "24", "blocks.0,", "blocks.1"]
    assert 'id="stages"' in shown.to_html()
    assert [(row["name"], row["blocks"]) for row in inspection.stage_rows()] == [("stem", ())]
    flat = netaug_fx.inspect(nn.Linear(3, 2), 2, example_inputs=torch.zeros(2, 3))
    assert "has no stages" in flat.stages_table()
    assert 'id="stages"' not in flat.to_html()


def test_it_is_plain_json(inspection: Inspection) -> None:
    told = json.loads(json.dumps(inspection.to_dict()))
    assert told["model"] == "Net"
    assert told["groups"][0]["choices"] == [8, 12, 16]
    assert {"tensor": "stem.weight", "group": "stem", "dim": 0, "role": "out"} in told["edges"]
    assert {"tensor", "dim", "width", "reason", "op", "module", "location"} == set(told["pins"][0])


def test_it_reads_as_a_table(inspection: Inspection) -> None:
    lines = str(inspection).splitlines()
    assert lines[0] == "Net: 1 groups; 89.8% of the weights and 99.6% of the multiply-adds can grow"
    assert lines[2].split() == ["group", "kind", "widths", "written", "by", "layers"]
    assert lines[3].split() == ["stem", "stream", "8", "/", "12", "/", "16", "stem", "3"]
    assert lines[5:7] == ["1 stage:", ""]
    assert lines[7].split()[0] == "stage"
    assert lines[10] == "stays as it is:"
    assert all(line == line.rstrip() for line in lines)


class Inverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, data: Tensor) -> Tensor:
        return self.third(torch.linalg.inv(self.second(self.first(data))))  # type: ignore[no-any-return]


def test_missing_rules_are_listed_with_what_they_cost() -> None:
    inspection = netaug_fx.inspect(nn.Sequential(Inverted()), example_inputs=torch.rand(8, 3))
    (missing,) = inspection.missing
    assert (missing.name, missing.kind) == ("aten::linalg_inv_ex", "operator")
    assert (missing.module, missing.module_class) == ("0", "Inverted")
    assert missing.location.startswith(__file__)
    assert missing.tensors == ("0.second.weight", "0.second.bias", "0.third.weight")
    assert missing.weights == 8 * 8 + 8 + 2 * 8
    head, line = str(inspection).splitlines()[-2:]
    assert head == "rules that are missing or fail (docs/extending.md shows how to write one):"
    assert line.startswith(f"  operator aten::linalg_inv_ex in 0 (Inverted) at {__file__}:")
    assert "pins 88 weights: there is no rule for aten::linalg_inv_ex" in line
    told = json.loads(json.dumps(inspection.to_dict()))["missing"][0]
    assert told["weights"] == 88
    assert "docs/extending.md" in told["remedy"]


def test_nothing_is_missing_where_every_operator_has_a_rule(inspection: Inspection) -> None:
    assert inspection.missing == ()
    assert "missing" not in str(inspection)


def test_a_page_can_be_saved_without_the_command_line(inspection: Inspection, tmp_path: Path) -> None:
    page = inspection.save_html(tmp_path / "pages" / "net.html", "My net")
    assert page == tmp_path / "pages" / "net.html"
    assert "<h1>My net</h1>" in page.read_text()
    assert [file.name for file in page.parent.iterdir()] == ["net.html"]


def test_a_page_without_jinja2_says_what_to_install(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "netaug_fx.training.pages", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"the page needs jinja2, .* pip install 'netaug_fx\[train\]'"):
        inspection.to_html()


def test_the_model_is_left_alone() -> None:
    model = Net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    netaug_fx.inspect(model, example_inputs=torch.rand(2, 3, 8, 8))
    assert type(model) is Net
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
