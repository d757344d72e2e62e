"""Graph: the widths that layers share, as named groups and as a networkx graph.

In: an ``Analysis``. Out: one ``Group`` per free width variable, named after the module that writes it; one ``Pin`` per
dimension that cannot grow; and the bipartite graph of tensors and groups that both can be read off.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
from torch import nn

from netaug_fx.passes import channels
from netaug_fx.passes.channels import Reason, Source, Var
from netaug_fx.passes.infer import Analysis

STREAM, INNER = "stream", "inner"
KINDS = (STREAM, INNER)


@dataclass(frozen=True)
class Group:
    """Channels that can only grow together.

    Attributes:
        name: Path of the module that writes them.
        kind: ``inner`` if they stay inside a block, else ``stream``.
        width: The original's number of channels (of heads or groups, where these grow in number).
        choices: Widths the group may take, ascending, the original's first; that one alone before planning.
        writers: Paths of the modules that produce the channels.
        readers: Paths of the modules that sum over them.
        layers: Paths of all modules that hold a tensor with these channels.
        feeder: Name of the stream whose present factor multiplies with this group's own; empty where none does.
        factors: The group's own factors where it has a feeder; ``choices`` then holds all products with the feeder's.
        divisor: What widths above the original's are rounded to a multiple of.
    """

    name: str
    kind: str
    width: int
    choices: tuple[int, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    layers: tuple[str, ...]
    feeder: str = ""
    factors: tuple[float, ...] = ()
    divisor: int = 1

    def widened(self, factor: float) -> int:
        """The width for a factor, rounded half up to the divisor, never below the original's."""
        rounded = int(self.width * factor / self.divisor + 0.5) * self.divisor
        return max(rounded, self.width) if factor > 1 else self.width


@dataclass(frozen=True)
class Pin:
    """Why a dimension of a tensor stays as it is."""

    tensor: str
    dim: int
    width: int
    reason: str
    op: str
    module: str
    location: str


def module_of(tensor: str) -> str:
    """Path of the module that owns a parameter or buffer."""
    return tensor.rpartition(".")[0]


def find_groups(model: nn.Module, analysis: Analysis) -> dict[Var, Group]:
    """The groups of a model, in the order in which their channels are first written.

    A width that no weight sums over is left out: its extra channels would end in a statistic or nowhere at all.
    """
    members: dict[Var, list[Source]] = defaultdict(list)
    for tensor, dims in analysis.tensors.items():
        for index, dim in enumerate(dims):
            for var in dict.fromkeys(channels.variables(dim)):
                members[var].append((tensor, index))
    written = {source: number for number, source in enumerate(analysis.writers)}
    blocks = _blocks(model)
    found: list[tuple[int, str, Var, Group]] = []
    for var, sources in members.items():
        group = _group(var, sources, analysis, blocks)
        if group.readers:
            first = min((written[source] for source in sources if source in written), default=len(written))
            found.append((first, group.name, var, group))
    found.sort(key=lambda item: item[:2])
    return _unique_names([(var, group) for _, _, var, group in found])


def _group(var: Var, sources: Sequence[Source], analysis: Analysis, blocks: frozenset[str]) -> Group:
    layers = tuple(dict.fromkeys(module_of(tensor) for tensor, _ in sources))
    owners = [(analysis.owners[tensor], dim) for tensor, dim in sources]
    writers = tuple(dict.fromkeys(path for source in owners for path in analysis.writers.get(source, ())))
    readers = tuple(dict.fromkeys(path for source in owners for path in analysis.readers.get(source, ())))
    kind = INNER if _inside_block(layers, blocks) else STREAM
    return Group((writers or layers)[0], kind, var.size, (var.size,), writers, readers, layers)


def _unique_names(found: Iterable[tuple[Var, Group]]) -> dict[Var, Group]:
    seen: Counter[str] = Counter()
    groups = {}
    for var, group in found:
        name = group.name or "(model)"
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        groups[var] = replace(group, name=name)
    return groups


# -- blocks ----------------------------------------------------------------------------------------


def _blocks(model: nn.Module) -> frozenset[str]:
    """Paths of the repeated units of a net: the outermost modules of a class that occurs more than once.

    Only classes of the user's own count, with at least two weight matrices below them; the root and containers of
    ``torch.nn`` are no blocks.
    """
    units = {
        path: module
        for path, module in model.named_modules()
        if path and not type(module).__module__.startswith("torch.nn.") and weight_matrices(module) >= 2
    }
    counts = Counter(type(module) for module in units.values())
    repeated = [path for path, module in units.items() if counts[type(module)] > 1]
    chosen: set[str] = set()
    for path in sorted(repeated, key=lambda path: path.count(".")):
        if chosen.isdisjoint(_upwards(path)):
            chosen.add(path)
    return frozenset(chosen)


def weight_matrices(module: nn.Module) -> int:
    """How many weight matrices and filters a module has, those of its submodules included."""
    return sum(parameter.dim() >= 2 for parameter in module.parameters())


def _upwards(path: str) -> Iterator[str]:
    """A module's path, and those of the modules around it."""
    names = path.split(".")
    return (".".join(names[:count]) for count in range(len(names), 0, -1))


def _inside_block(layers: Sequence[str], blocks: frozenset[str]) -> bool:
    """Whether one block holds all layers; no block is inside another."""
    around = {next((path for path in _upwards(layer) if path in blocks), None) for layer in layers}
    return len(around) == 1 and None not in around


# -- what is shown ---------------------------------------------------------------------------------


def find_pins(analysis: Analysis, stays: Mapping[Var, Reason]) -> tuple[Pin, ...]:
    """Every dimension of more than one element that does not grow, with the reason.

    Args:
        analysis: What ``infer`` found.
        stays: Free widths that the plan leaves as they are, with the reason.
    """
    pins = []
    for tensor, dims in analysis.tensors.items():
        for index, dim in enumerate(dims):
            free = list(channels.variables(dim))
            if dim.size <= 1 or any(var not in stays for var in free):
                continue
            reason = stays[free[0]] if free else channels.pin_reason(dim) or Reason("it is tied to a fixed size")
            pins.append(Pin(tensor, index, dim.size, reason.text, reason.op, reason.module, reason.location))
    return tuple(pins)


def dependency_graph(analysis: Analysis, groups: Mapping[Var, Group]) -> nx.DiGraph[Any]:
    """Tensors and groups as a bipartite graph.

    Nodes are ``("tensor", name)`` with ``shape`` and ``module``, and ``("group", name)`` with ``kind`` and
    ``width``; an
    edge from a tensor to a group has the dimension's index as ``dim`` and its ``role`` (``in``, ``out`` or empty).
    """
    graph: nx.DiGraph[Any] = nx.DiGraph()
    for group in groups.values():
        graph.add_node(("group", group.name), kind=group.kind, width=group.width)
    for tensor, dims in analysis.tensors.items():
        node = ("tensor", tensor)
        graph.add_node(node, shape=tuple(dim.size for dim in dims), module=module_of(tensor))
        for index, dim in enumerate(dims):
            source = (analysis.owners[tensor], index)
            role = "/".join(["in"] * (source in analysis.readers) + ["out"] * (source in analysis.writers))
            for var in dict.fromkeys(channels.variables(dim)):
                if var in groups:
                    graph.add_edge(node, ("group", groups[var].name), dim=index, role=role)
    return graph
