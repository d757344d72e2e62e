"""The picture of the channel groups: one row for each layer, one coloured line for each group.

A line runs from the first layer that holds a group's channels to the last, like a branch in a history graph: a full
dot where the channels are written, a ring where they are read, a small dot where they pass (norms). Lines of groups
that do not meet share a column, so that a net of 300 layers stays as narrow as its widest place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from netaug_fx.passes.graph import Group, Pin

ROW, LANE, MARGIN, TOP, HEADS = 19, 15, 16, 4, 26
FEWEST_COLUMNS = 4  # of a kind, so that its heading has room
COLOURS = (
    "#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#dc2626", "#65a30d",
    "#c026d3", "#0d9488", "#ea580c", "#4f46e5",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One row: a module that holds tensors of its own."""

    path: str
    kind: str
    shape: str


@dataclass(frozen=True)
class Lane:
    """A group's line: its column, its colour, and the rows it touches, ascending."""

    group: Group
    column: int
    colour: str
    rows: tuple[int, ...]


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """The modules that hold parameters, in the order of their definition."""
    return layers_from(
        {path: type(module).__name__ for path, module in model.named_modules()},
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
    )


def layers_from(modules: Mapping[str, str], parameters: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """The same from class names by path and shapes by name."""
    largest: dict[str, tuple[int, ...]] = {}
    for name, shape in parameters.items():
        path = name.rpartition(".")[0]
        if path not in largest or len(shape) > len(largest[path]):
            largest[path] = shape
    return tuple(
        Layer(path, kind, "x".join(map(str, largest[path]))) for path, kind in modules.items() if path in largest
    )


def lay_out(layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[Lane, ...]:
    """Give each group a column: streams on the left, inner groups on the right, none overlapping in a column."""
    place = {layer.path: row for row, layer in enumerate(layers)}
    spans: list[tuple[Group, tuple[int, ...]]] = []
    for group in groups:
        touched = {place[path] for path in (*group.layers, *group.writers, *group.readers) if path in place}
        if touched:
            spans.append((group, tuple(sorted(touched))))
    spans.sort(key=lambda span: (span[0].kind != "stream", span[1][0], -span[1][-1]))
    lanes: list[Lane] = []
    first_column = 0
    for kind in ("stream", "inner"):
        free_from: list[int] = []  # for each column of this kind, the first row where it is free again
        for group, rows in spans:
            if (group.kind == "stream") != (kind == "stream"):
                continue
            column = next((n for n, row in enumerate(free_from) if row < rows[0]), len(free_from))
            free_from[column : column + 1] = [rows[-1]]
            lanes.append(Lane(group, first_column + column, COLOURS[len(lanes) % len(COLOURS)], rows))
        first_column += max(len(free_from), FEWEST_COLUMNS)
    return tuple(lanes)


def draw(model: nn.Module, groups: Sequence[Group], pins: Sequence[Pin]) -> str:
    """``draw_layers`` of a model's layers."""
    return draw_layers(layers_of(model), groups, pins)


def draw_layers(layers: Sequence[Layer], groups: Sequence[Group], pins: Sequence[Pin]) -> str:
    """The picture: one SVG element of headings and one of rows, with tooltips (``data-tip``, and ``<title>``)."""
    lanes = lay_out(layers, groups)
    columns = max((lane.column + 1 for lane in lanes), default=0)
    names_at = MARGIN + max(columns, 2 * FEWEST_COLUMNS) * LANE + 12
    width, height = names_at + 640, TOP + len(layers) * ROW + 8
    parts = [
        # Headings of their own, so that they can stay in sight while the rows scroll.
        f'<svg class="heads" viewBox="0 0 {width} {HEADS}" width="{width}" height="{HEADS}" aria-hidden="true" '
        'xmlns="http://www.w3.org/2000/svg">',
        *_headings(lanes, names_at),
        "</svg>",
        f'<svg class="groups" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="Channel groups of {len(layers)} layers" xmlns="http://www.w3.org/2000/svg">',
        *_rows(layers, lanes, pins, names_at, width),
    ]
    for number, lane in enumerate(lanes):
        parts += _line(number, lane, layers)
    return "\n".join([*parts, "</svg>"])


def _x(column: int) -> int:
    return MARGIN + column * LANE


def _y(row: int) -> float:
    return TOP + row * ROW + ROW / 2


def _headings(lanes: Sequence[Lane], names_at: int) -> list[str]:
    labels = [(names_at, "layer"), (names_at + 330, "type"), (names_at + 450, "weight"), (names_at + 570, "pinned")]
    for kind in ("stream", "inner"):
        columns = [lane.column for lane in lanes if lane.group.kind == kind]
        if columns:
            labels.append((_x(min(columns)) - 6, kind))
    return [f'<text class="head" x="{x}" y="17">{label}</text>' for x, label in labels]


def _rows(layers: Sequence[Layer], lanes: Sequence[Lane], pins: Sequence[Pin], names_at: int, width: int) -> list[str]:
    by_layer = _pins_by_layer(pins)
    groups_at: dict[int, list[str]] = {}
    for number, lane in enumerate(lanes):
        for row in lane.rows:
            groups_at.setdefault(row, []).append(f"g{number}")
    parts, band, parent = [], False, None
    for row, layer in enumerate(layers):
        # Bands follow the blocks: the first two parts of a path, as in features.3.
        block = ".".join(layer.path.split(".")[:-1][:2])
        if block != parent:
            band, parent = not band, block
        y = _y(row)
        members = " ".join(groups_at.get(row, ()))
        parts.append(f'<g class="layer {members}" data-layer="{escape(layer.path)}">')
        parts.append(
            f'<rect class="row{" band" if band else ""}" x="0" y="{y - ROW / 2}" width="{width}" height="{ROW}"/>'
            f'<text class="path" x="{names_at}" y="{y + 4}">{escape(_shorten(layer.path or "(root)", 50))}'
            f"<title>{escape(layer.path)}</title></text>"
            f'<text class="type" x="{names_at + 330}" y="{y + 4}">{escape(_shorten(layer.kind, 18))}</text>'
            f'<text class="shape" x="{names_at + 450}" y="{y + 4}">{escape(layer.shape)}</text>'
        )
        if layer.path in by_layer:
            parts.append(_pin_mark(by_layer[layer.path], names_at + 570, y))
        parts.append("</g>")
    return parts


def _pins_by_layer(pins: Sequence[Pin]) -> Mapping[str, list[Pin]]:
    by_layer: dict[str, list[Pin]] = {}
    for pin in pins:
        if not is_kernel_size(pin):
            by_layer.setdefault(pin.tensor.rpartition(".")[0], []).append(pin)
    return by_layer


def is_kernel_size(pin: Pin) -> bool:
    """Whether a pin is of a kernel's height or width: true of every convolution, and nothing to wonder about."""
    return pin.dim >= 2 and "convolution" in pin.op


def _pin_mark(pins: Sequence[Pin], x: int, y: float) -> str:
    lines = [
        f"{pin.tensor} dim {pin.dim} stays {pin.width}: {pin.reason}"
        + (f" [{pin.op}{', ' + pin.location if pin.location else ''}]" if pin.op else "")
        for pin in pins
    ]
    tip = escape("\n".join(lines))
    label = f"{len(pins)} dim{'s' if len(pins) > 1 else ''}"
    return (
        f'<g class="pin" data-tip="{tip}"><title>{tip}</title>'
        f'<rect x="{x}" y="{y - 7}" width="44" height="14" rx="7"/>'
        f'<text x="{x + 22}" y="{y + 3.5}" text-anchor="middle">{label}</text></g>'
    )


def _line(number: int, lane: Lane, layers: Sequence[Layer]) -> list[str]:
    group, x = lane.group, _x(lane.column)
    choices = " / ".join(map(str, group.choices))
    tip = escape(
        f"{group.name} ({group.kind})\nwidth {group.width}; may be {choices}\n"
        f"written by {_listed(group.writers)}\nread by {_listed(group.readers)}"
    )
    parts = [
        f'<g class="group" data-group="g{number}" data-name="{escape(group.name)}" data-tip="{tip}" '
        f'style="--c:{lane.colour}"><title>{tip}</title>',
        f'<line x1="{x}" y1="{_y(lane.rows[0])}" x2="{x}" y2="{_y(lane.rows[-1])}"/>',
        # A wide invisible line makes the thin one easy to point at.
        f'<line class="hit" x1="{x}" y1="{_y(lane.rows[0]) - 7}" x2="{x}" y2="{_y(lane.rows[-1]) + 7}"/>',
    ]
    for row in lane.rows:
        path = layers[row].path
        if path in group.writers:
            parts.append(f'<circle class="writes" cx="{x}" cy="{_y(row)}" r="5"/>')
        elif path in group.readers:
            parts.append(f'<circle class="reads" cx="{x}" cy="{_y(row)}" r="4"/>')
        else:
            parts.append(f'<circle class="holds" cx="{x}" cy="{_y(row)}" r="2.5"/>')
    return [*parts, "</g>"]


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _shorten(text: str, most: int) -> str:
    """Keep the end, which tells layers apart."""
    return text if len(text) <= most else "…" + text[-(most - 1) :]
