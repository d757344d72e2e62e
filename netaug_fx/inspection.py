"""What ``inspect`` returns: the groups of a model, what stays as it is and why, and the dependency graph."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
from torch import nn

from netaug_fx.atomic import write_text
from netaug_fx.errors import InputError
from netaug_fx.passes.graph import Group, Pin
from netaug_fx.passes.growth import growing_share_of_macs, growing_share_of_weights
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.leaves import LeafCall
from netaug_fx.passes.plan import Plan
from netaug_fx.passes.recorder import OpRecord
from netaug_fx.passes.stages import Stage

REMEDY = "docs/extending.md shows how to write one"

_DIGITS = re.compile(r"\d+")
_SHOWN = 5


@dataclass(frozen=True)
class MissingRule:
    """An operator without a rule, or an operator or leaf module whose rule fails: it pins what it touches.

    Attributes:
        name: The operator (``mylib::fused_scale``), or the leaf's class.
        kind: ``operator`` or ``leaf``.
        module: Path of the module that ran it.
        module_class: That module's class name.
        location: File and line.
        problem: What is wrong: there is no rule, or what it did.
        tensors: Parameters and buffers with a dimension that stays as it is for this reason.
        weights: Number of elements of those that are parameters.
    """

    name: str
    kind: str
    module: str
    module_class: str
    location: str
    problem: str
    tensors: tuple[str, ...]
    weights: int

    def __str__(self) -> str:
        where = f"{self.module or '(model)'} ({self.module_class})" + (f" at {self.location}" if self.location else "")
        return f"{self.kind} {self.name} in {where} pins {self.weights:,} weights: {self.problem}"


@dataclass(frozen=True)
class Inspection:
    """What ``augment`` would do to a model.

    Attributes:
        model: The model's class name.
        groups: Groups that grow, with the widths they may take.
        pins: Dimensions that stay as they are, with reasons.
        graph: Tensors and groups as a bipartite networkx graph (see ``passes.graph.dependency_graph``).
        modules: Class name of every module, by path.
        opaque: Modules whose forward cannot be traced, and why; only their literal widths are out of reach.
        missing: Operators without a rule, and rules that fail, by the number of weights that they pin.
        parameters: Shape of every parameter, by name.
        mixing: Where a statistic is taken across widths that grow, as operator and place in the code.
        growing_share: Share of weight matrices' elements that lie in a tensor with a dimension that grows, from 0 to 1.
        growing_share_of_macs: Share of multiply-adds in operators that cost more when the groups grow, from 0 to 1.
        stages: Parts at one feature-map size, in the order in which they run.
    """

    model: str
    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]
    graph: nx.DiGraph[Any]
    modules: dict[str, str] = field(repr=False)
    opaque: dict[str, str] = field(repr=False)
    mixing: tuple[str, ...] = field(repr=False)
    growing_share: float
    growing_share_of_macs: float
    missing: tuple[MissingRule, ...] = ()
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    stages: tuple[Stage, ...] = ()

    @classmethod
    def of(
        cls, model: nn.Module, analysis: Analysis, chosen: Plan, graph: nx.DiGraph[Any], stages: tuple[Stage, ...]
    ) -> Inspection:
        """Gathers what the passes found."""
        mixing = dict.fromkeys(
            f"{m.op} in {m.module or '(model)'} at {m.location}"
            for m in analysis.mixing
            if any(map(chosen.grows, m.over))
        )
        return cls(
            model=type(model).__name__,
            groups=chosen.groups,
            pins=chosen.pins,
            graph=graph,
            modules={path: type(module).__name__ for path, module in model.named_modules()},
            opaque=dict(analysis.opaque),
            mixing=tuple(mixing),
            growing_share=growing_share_of_weights(model, analysis, chosen),
            growing_share_of_macs=growing_share_of_macs(analysis, chosen),
            missing=_missing_rules(model, analysis, chosen.pins),
            parameters={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
            stages=stages,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; the graph as a list of edges."""
        return {
            "model": self.model,
            "growing_share": self.growing_share,
            "growing_share_of_macs": self.growing_share_of_macs,
            "groups": [asdict(group) for group in self.groups],
            "pins": [asdict(pin) for pin in self.pins],
            "stages": self.stage_rows(),
            "edges": [
                {"tensor": tensor[1], "group": group[1], **data} for tensor, group, data in self.graph.edges(data=True)
            ],
            "modules": self.modules,
            "opaque": self.opaque,
            "mixing": list(self.mixing),
            "missing": [{**asdict(each), "remedy": REMEDY} for each in self.missing],
            "parameters": {name: list(shape) for name, shape in self.parameters.items()},
        }

    def stage_rows(self) -> list[dict[str, Any]]:
        """The stages as plain JSON types, each with the widths of its streams and inner groups that can grow."""
        widths = {group.name: group.width for group in self.groups}
        return [
            {
                **asdict(stage),
                "stream_widths": [widths[name] for name in stage.streams if name in widths],
                "inner_widths": [widths[name] for name in stage.inner if name in widths],
            }
            for stage in self.stages
        ]

    def stages_table(self) -> str:
        """The stages as lines of text: positions of their feature maps, widths, and blocks that can be repeated."""
        rows = [("stage", "positions", "stream widths", "inner widths", "blocks that can be repeated")]
        for row in self.stage_rows():
            cells = (" + ".join(map(str, row[name])) or "-" for name in ("stream_widths", "inner_widths"))
            rows.append((row["name"], str(row["positions"]), *cells, ", ".join(row["blocks"]) or "-"))
        if len(rows) == 1:
            return f"{self.model} has no stages: no width of it leads from layer to layer"
        count = "1 stage" if len(self.stages) == 1 else f"{len(self.stages)} stages"
        return "\n".join([f"{count}:", "", *_columns(rows)])

    def to_html(self, title: str | None = None) -> str:
        """A page that needs no other file: the table of groups, the net drawn with its groups, and what is pinned.

        Args:
            title: Heading of the page; the model's class name by default.

        Raises:
            InputError: jinja2 is not installed.
        """
        try:
            from netaug_fx.training.pages import inspection_page
        except ModuleNotFoundError as error:
            raise InputError(
                f"the page needs {error.name}, which the extra 'train' installs: pip install 'netaug_fx[train]'; "
                "to_dict() needs nothing more"
            ) from error
        return inspection_page(self, title or self.model)

    def save_html(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Writes the page of ``to_html`` to a file, whole or not at all, and returns its path.

        Raises:
            InputError: jinja2 is not installed.
            OSError: the file cannot be written.
        """
        return write_text(path, self.to_html(title))

    def __str__(self) -> str:
        rows = [("group", "kind", "widths", "written by", "layers")]
        for group in self.groups:
            widths = " / ".join(map(str, group.choices))
            writers = group.writers[0] if group.writers else "-"
            more = f" +{len(group.writers) - 1}" if len(group.writers) > 1 else ""
            rows.append((group.name, group.kind, widths, writers + more, str(len(group.layers))))
        lines = _columns(rows)
        head = (
            f"{self.model}: {len(self.groups)} groups; {self.growing_share:.1%} of the weights and "
            f"{self.growing_share_of_macs:.1%} of the multiply-adds can grow"
        )
        stays = self._pin_lines()
        sections = (*self._mixing_lines(), *self._opaque_lines(), *self._missing_lines())
        return "\n".join([head, "", *lines, "", self.stages_table(), "", "stays as it is:", *stays, *sections])

    def _pin_lines(self) -> Iterator[str]:
        """One line a reason and place; reasons that differ in numbers alone (shapes, say) are one."""
        places: dict[tuple[str, str, str], list[str]] = {}
        for pin in self.pins:
            places.setdefault((_DIGITS.sub("#", pin.reason), pin.op, pin.location), []).append(pin.reason)
        for (_, op, place), reasons in sorted(places.items(), key=lambda item: -len(item[1])):
            alike = " (and alike)" if len(set(reasons)) > 1 else ""
            where = (f" [{op}]" if op else "") + (f" at {place}" if place else "")
            yield f"  {len(reasons):4d} x {reasons[0]}{alike}{where}"

    def _mixing_lines(self) -> Iterator[str]:
        """Places where values change with the width, the target's own pass excepted."""
        if self.mixing:
            yield from ("", "statistics across channels that grow, taken over all channels of a wider net:")
            yield from (f"  {place}" for place in self.mixing[:_SHOWN])
        if len(self.mixing) > _SHOWN:
            yield f"  and {len(self.mixing) - _SHOWN} more (.mixing)"

    def _opaque_lines(self) -> Iterator[str]:
        """Forwards that cannot be traced, where widths stay for it: numbers in them cannot follow a width."""
        pinned = {pin.module for pin in self.pins}
        where: dict[str, list[str]] = {}
        for path, why in self.opaque.items():
            if path in pinned:
                where.setdefault(why, []).append(path or "(model)")
        if where:
            yield from ("", "forwards that cannot be traced, so that numbers in them cannot follow a width:")
        for why, paths in where.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield f"  {paths[0]} ({self.modules.get(paths[0], self.model)}){more}: {why}"

    def _missing_lines(self) -> Iterator[str]:
        if not self.missing:
            return
        pinning = [each for each in self.missing if each.tensors]
        yield from ("", f"rules that are missing or fail ({REMEDY}):")
        yield from (f"  {each}" for each in pinning)
        if harmless := len(self.missing) - len(pinning):
            yield f"  {harmless} more, which pin nothing"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]


def _missing_rules(model: nn.Module, analysis: Analysis, pins: tuple[Pin, ...]) -> tuple[MissingRule, ...]:
    parameters = dict(model.named_parameters())
    faults = {
        (record.op, record.module, record.location, record.fault): record
        for training in (False, True)
        for record in analysis.operators[training]
        if record.fault
    }
    pinned: dict[tuple[str, str, str, str], dict[str, None]] = {place: {} for place in faults}
    for pin in pins:
        pinned.get((pin.op, pin.module, pin.location, pin.reason), {})[pin.tensor] = None
    found = [
        MissingRule(
            name=_name_of(record),
            kind="leaf" if isinstance(record.func, LeafCall) else "operator",
            module=record.module,
            module_class=type(model.get_submodule(record.module)).__name__,
            location=record.location,
            problem=record.fault,
            tensors=tuple(pinned[place]),
            weights=sum(parameters[name].numel() for name in pinned[place] if name in parameters),
        )
        for place, record in faults.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.weights))


def _name_of(record: OpRecord) -> str:
    return str(record.func) if isinstance(record.func, LeafCall) else str(record.func._schema.name)
