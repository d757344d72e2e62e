"""What ``inspect`` returns: the groups of a model, what stays as it is and why, and the dependency graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import networkx as nx
from torch import nn

from netaug_fx.passes.graph import Group, Pin
from netaug_fx.passes.infer import Analysis
from netaug_fx.passes.plan import Plan


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
        mixing: Where a statistic is taken across widths that grow, as operator and place in the code.
        growing_share: Share of weight matrices' elements that lie in a dimension that grows, from 0 to 1.
    """

    model: str
    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]
    graph: nx.DiGraph[Any]
    modules: dict[str, str] = field(repr=False)
    opaque: dict[str, str] = field(repr=False)
    mixing: tuple[str, ...] = field(repr=False)
    growing_share: float

    @classmethod
    def of(cls, model: nn.Module, analysis: Analysis, chosen: Plan, graph: nx.DiGraph[Any]) -> Inspection:
        """Gathers what the passes found."""
        mixing = dict.fromkeys(
            f"{m.op} in {m.module or '(model)'} at {m.location}"
            for m in analysis.mixing
            if any(map(chosen.grows, m.over))
        )
        weights = {n: p.numel() for n, p in model.named_parameters() if p.dim() >= 2}
        grown = sum(count for name, count in weights.items() if any(map(chosen.grows, analysis.tensors[name])))
        return cls(
            model=type(model).__name__,
            groups=chosen.groups,
            pins=chosen.pins,
            graph=graph,
            modules={path: type(module).__name__ for path, module in model.named_modules()},
            opaque=dict(analysis.opaque),
            mixing=tuple(mixing),
            growing_share=grown / max(sum(weights.values()), 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; the graph as a list of edges."""
        return {
            "model": self.model,
            "growing_share": self.growing_share,
            "groups": [asdict(group) for group in self.groups],
            "pins": [asdict(pin) for pin in self.pins],
            "edges": [
                {"tensor": tensor[1], "group": group[1], **data} for tensor, group, data in self.graph.edges(data=True)
            ],
            "modules": self.modules,
            "opaque": self.opaque,
            "mixing": list(self.mixing),
        }

    def __str__(self) -> str:
        rows = [("group", "kind", "widths", "written by", "layers")]
        for group in self.groups:
            widths = " / ".join(map(str, group.choices))
            writers = group.writers[0] if group.writers else "-"
            more = f" +{len(group.writers) - 1}" if len(group.writers) > 1 else ""
            rows.append((group.name, group.kind, widths, writers + more, str(len(group.layers))))
        columns = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, columns, strict=True)).rstrip() for row in rows
        ]
        head = f"{self.model}: {len(self.groups)} groups; {self.growing_share:.1%} of the weights can grow"
        stays = Counter((pin.reason, pin.op, pin.location) for pin in self.pins)
        reasons = [
            f"  {count:4d} x {reason}" + (f" [{op}]" if op else "") + (f" at {place}" if place else "")
            for (reason, op, place), count in stays.most_common()
        ]
        return "\n".join([head, "", *lines, "", "stays as it is:", *reasons])
