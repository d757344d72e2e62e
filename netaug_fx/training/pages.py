"""Pages made from the templates in this folder; needs jinja2 alone of what the extra ``train`` installs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from netaug_fx.training.group_picture import draw_layers, layers_from

if TYPE_CHECKING:
    from netaug_fx.inspection import Inspection


def inspection_page(inspection: Inspection, title: str) -> str:
    """The page of ``netaug-fx inspect --html``: the widths, the picture, the pins and the missing rules of a model."""
    layers = layers_from(inspection.modules, inspection.parameters)
    return (
        templates()
        .get_template("inspect.html.j2")
        .render(
            model=title,
            parameters=sum(_count(shape) for shape in inspection.parameters.values()),
            layers=len(layers),
            growing_share=inspection.growing_share,
            groups=[dataclasses.asdict(group) for group in inspection.groups],
            pins=[dataclasses.asdict(pin) for pin in inspection.pins],
            missing=[dataclasses.asdict(each) for each in inspection.missing],
            stages=inspection.stage_rows(),
            picture=draw_layers(layers, inspection.groups, inspection.pins),
        )
    )


def templates() -> jinja2.Environment:
    """The templates of this folder, with the filters they use; a name that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["si"] = si
    environment.filters["short_path"] = lambda location: "/".join(Path(location).parts[-2:])
    return environment


def si(value: float) -> str:
    """A count with the unit that gives it one to three digits before the point: 23.5M, 5.43k, 12."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:g}"


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
