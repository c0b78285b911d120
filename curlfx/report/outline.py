"""A network as rows from top to bottom: its layers, the ops that tie them and those that pin them, on lanes.

A lane is a coupling group, or a set of tied sites that stay. It runs from the first row that has its channels to the
last one: a residual stream is one long lane, the channels inside of a block are short ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import networkx as nx
import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.fx import Node

from curlfx.coupling import Coupling, Place, places
from curlfx.coupling.chains import TIES, Chains
from curlfx.coupling.vectors import distinct
from curlfx.graph.source import where
from curlfx.report.inspection import block_count

Ints = npt.NDArray[np.int64]

STAYS = "stays: "
"""How the id of a lane starts whose channels are frozen."""

NORMS = ("norm", "prelu")
"""How ops end that go into the row of the layer right before them."""

Kind = Literal["layer", "carrier", "join", "pin"]
"""A layer that makes channels; a normalisation or table that has them; an op that ties them; what keeps them."""


@dataclass(frozen=True)
class Row:
    """One line of the outline.

    Attributes:
        kind: See `Kind`.
        name: Layer (module or parameter), or FX node.
        op: What is computed, without ``aten.``.
        where: The user's line, "" when unknown.
        reads: Lanes of the channels that a layer sums over.
        has: Lanes of the channels that it makes, carries, ties or pins.
        widths: In words, like ``64 → 256``.
        also: Carriers right behind a layer, on its lanes.
    """

    kind: Kind
    name: str
    op: str
    where: str
    reads: tuple[str, ...]
    has: tuple[str, ...]
    widths: str = ""
    also: tuple[str, ...] = ()

    @property
    def lanes(self) -> tuple[str, ...]:
        """All lanes on which the row has a mark."""
        return tuple(dict.fromkeys((*self.reads, *self.has)))


@dataclass(frozen=True)
class Lane:
    """Channels that are followed down the network.

    Attributes:
        id: Group id, or the first site of tied ones that stay.
        stays: Whether its channels are frozen.
        text: What there is to know of it.
        first: Index of the first row that has it.
        last: Index of the last one.
        column: From 0 at the left; lanes that overlap have different ones.
    """

    id: str
    stays: bool
    text: str
    first: int
    last: int
    column: int


def outline(coupling: Coupling) -> tuple[tuple[Row, ...], tuple[Lane, ...]]:
    """Rows in network order, and the lanes that they have."""
    known = places(coupling)
    stuck = _staying(coupling, known)
    lanes_of = {site: (*place.groups, *((stuck[site],) if site in stuck else ())) for site, place in known.items()}
    found = [
        *_layers(coupling, known, lanes_of),
        *_joins(coupling, lanes_of),
        *_pins(coupling, lanes_of),
    ]
    order = {node: number for number, node in enumerate(coupling.graph.graph["chains"].nodes)}
    rows = _merged([row for _, row in sorted(found, key=lambda one: order[one[0]])])
    return rows, _lanes(rows, coupling, known, stuck)


def as_values(rows: Sequence[Row], lanes: Sequence[Lane]) -> dict[str, Any]:
    """An outline as JSON values, which `from_values` makes it of again."""
    return {"rows": [asdict(row) for row in rows], "lanes": [asdict(lane) for lane in lanes]}


def from_values(values: Mapping[str, Any]) -> tuple[tuple[Row, ...], tuple[Lane, ...]]:
    """Rows and lanes from `as_values`, also after a trip through JSON. Raises: KeyError, TypeError for other values."""
    listed = ("reads", "has", "also")
    rows = [Row(**{**row, **{name: tuple(row[name]) for name in listed}}) for row in values["rows"]]
    return tuple(rows), tuple(Lane(**lane) for lane in values["lanes"])


def _staying(coupling: Coupling, known: Mapping[str, Place]) -> dict[str, str]:
    """Lane of every site with frozen channels that hangs together with a layer's frozen channels."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(site for site, place in known.items() if place.stays)
    for a, b, data in coupling.graph.edges(data=True):
        if data["stays"] and data["kind"] == TIES and a in graph and b in graph:
            graph.add_edge(a, b)
    result: dict[str, str] = {}
    for component in nx.connected_components(graph):
        sites = [site for site in known if site in component]
        made = [site for site in sites if known[site].role == "makes"]
        if made:
            result |= dict.fromkeys(sites, f"{STAYS}{made[0]}")
    return result


def _layers(
    coupling: Coupling, known: Mapping[str, Place], lanes_of: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, Row]]:
    """One row per call that reads parameters with channels, with the call's name."""
    nodes: Mapping[str, Node] = coupling.graph.graph["chains"].nodes
    sites: dict[str, list[Place]] = {}
    for site, place in known.items():
        sites.setdefault(site.rpartition("[")[0], []).append(place)
    calls: dict[str, list[str]] = {}
    for parameter, call in _readers(nodes.values()).items():
        if any(lanes_of[place.site] for place in sites.get(parameter, ())):
            calls.setdefault(call, []).append(parameter)
    modules = [parameters[0].rpartition(".")[0] for parameters in calls.values()]
    rows = []
    for call, parameters in calls.items():
        node, module = nodes[call], parameters[0].rpartition(".")[0]
        alone = modules.count(module) == 1 and module and parameters[0].rpartition(".")[2] in ("weight", "bias")
        weight = next((name for name in parameters if any(place.role == "makes" for place in sites[name])), None)
        name = module if alone else parameters[0].removesuffix(".weight")
        if weight is None:
            carried = [place for parameter in parameters for place in sites[parameter] if lanes_of[place.site]]
            has = _union(lanes_of[place.site] for place in carried)
            width = str(max(place.width for place in carried))
            rows.append((call, Row("carrier", name, _op(node), where(node), (), has, width)))
            continue
        made = [place for place in sites[weight] if place.role == "makes"]
        read = [place for place in sites[weight] if place.role == "reads" and lanes_of[place.site]]
        summed = read or [place for place in sites[weight] if place.role != "makes" and _is_channel(place)]
        widths = " → ".join(str(max(place.width for place in some)) for some in (summed, made) if some)
        reads, has = (_union(lanes_of[place.site] for place in some) for some in (read, made))
        rows.append((call, Row("layer", name, _op(node), where(node), reads, has, widths)))
    return rows


def _is_channel(place: Place) -> bool:
    """Whether an axis of a weight is that of its rows or columns, and not one of a kernel."""
    return place.site.endswith(("[0]", "[1]"))


def _readers(nodes: Iterable[Node]) -> dict[str, str]:
    """For every parameter the name of the first call that brings it together with the network's input."""
    fixed: dict[Node, set[str]] = {}
    result: dict[str, str] = {}
    for node in nodes:
        if node.op == "get_attr":
            fixed[node] = {str(node.target)}
        elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor | tuple | list):
            inputs = [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor | tuple | list)]
            read = [name for one in inputs for name in sorted(fixed.get(one, ()))]
            if inputs and all(one in fixed for one in inputs):
                fixed[node] = set(read)
            else:
                for name in read:
                    result.setdefault(name, node.name)
    return result


def _joins(coupling: Coupling, lanes_of: Mapping[str, tuple[str, ...]]) -> list[tuple[str, Row]]:
    """One row per op that ties channels and reads no parameter."""
    chains: Chains = coupling.graph.graph["chains"]
    channel_of = coupling.graph.graph["channel_of"]
    lane_of = np.array(["", *(group.id for group in coupling.groups for _ in range(group.width))], dtype=object)
    numbers = np.concatenate([[0], *(group.channels for group in coupling.groups)]).astype(np.int64)
    by_channel = lane_of[np.argsort(numbers)]
    readers = set(_readers(chains.nodes.values()).values())
    found: dict[str, list[str]] = {}
    for link in chains.links:
        node = chains.nodes.get(link.node)
        apart = link.a != link.b
        if link.kind != TIES or node is None or node.op != "call_function" or node.name in readers or not apart.any():
            continue
        for side in (link.a[apart], link.b[apart]):
            channels = channel_of[side]
            free = [str(lane) for lane in dict.fromkeys(by_channel[distinct(channels[channels > 0])])]
            sites = {chains.title(int(label)) for label in _one_per_owner(chains, side[channels == 0])}
            stuck = [lane for site in sorted(sites) for lane in lanes_of[site] if lane.startswith(STAYS)]
            found.setdefault(node.name, []).extend((*free, *stuck))
    return [
        (name, Row("join", name, _op(chains.nodes[name]), where(chains.nodes[name]), (), tuple(dict.fromkeys(lanes))))
        for name, lanes in found.items()
        if lanes
    ]


def _one_per_owner(chains: Chains, labels: Ints) -> list[int]:
    _, first = np.unique(chains.owners(labels), return_index=True)
    return [int(label) for label in labels[first]]


def _pins(coupling: Coupling, lanes_of: Mapping[str, tuple[str, ...]]) -> list[tuple[str, Row]]:
    """One row per node that keeps channels of layers, with its first reason."""
    nodes: Mapping[str, Node] = coupling.graph.graph["chains"].nodes
    lanes: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for frozen in coupling.frozen:
        if frozen.node in nodes and nodes[frozen.node].op in ("call_function", "output"):
            reasons.setdefault(frozen.node, frozen.reason)
            found = [lane for site in frozen.sites for lane in lanes_of[str(site)] if lane.startswith(STAYS)]
            lanes.setdefault(frozen.node, []).extend(found)
    return [
        (name, Row("pin", name, reasons[name], where(nodes[name]), (), tuple(dict.fromkeys(found))))
        for name, found in lanes.items()
    ]


def _merged(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Carriers go into the row of the layer right before them where they have nothing but its channels."""
    result: list[Row] = []
    for row in rows:
        last = result[-1] if result else None
        if last is not None and _belongs(row, last):
            result[-1] = replace(last, also=(*last.also, row.name))
        else:
            result.append(row)
    return tuple(result)


def _belongs(row: Row, layer: Row) -> bool:
    """Whether a row is a normalisation of a layer's channels, in the same module."""
    if layer.kind not in ("layer", "carrier") or layer.op.endswith(NORMS):
        return False
    alone = row.kind == "carrier" and row.op.endswith(NORMS) and set(row.has) <= set(layer.has)
    return alone and row.name.rpartition(".")[0] == layer.name.rpartition(".")[0]


def _lanes(
    rows: Sequence[Row], coupling: Coupling, known: Mapping[str, Place], stuck: Mapping[str, str]
) -> tuple[Lane, ...]:
    """Where lanes run; the longest are furthest to the left."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, row in enumerate(rows):
        for lane in row.lanes:
            first.setdefault(lane, number)
            last[lane] = number
    texts = _texts(coupling, known, stuck)
    taken: list[list[tuple[int, int]]] = []
    found = []
    for lane in sorted(first, key=lambda name: (first[name] - last[name], first[name])):
        start, end = first[lane], last[lane]
        column = next((i for i, busy in enumerate(taken) if all(end < a or start > b for a, b in busy)), len(taken))
        if column == len(taken):
            taken.append([])
        taken[column].append((start, end))
        found.append(Lane(lane, lane.startswith(STAYS), texts[lane], start, end, column))
    return tuple(sorted(found, key=lambda lane: (lane.first, lane.column)))


def _texts(coupling: Coupling, known: Mapping[str, Place], stuck: Mapping[str, str]) -> dict[str, str]:
    """What a lane's tooltip says."""
    texts = {}
    for group in coupling.groups:
        blocks = block_count(group)
        kind = "blocks that go as a whole" if group.whole_blocks else "channels"
        remarks = [f"group {group.id}", f"{group.width} {kind}", f"{len(group.sites)} sites"]
        remarks += [f"{blocks} blocks that keep equal counts"] if blocks is not None else []
        remarks += ["statistics change"] if group.statistics_change else []
        texts[group.id] = ", ".join(remarks)
    for lane in dict.fromkeys(stuck.values()):
        sites = [site for site, name in stuck.items() if name == lane and known[site].role == "makes"]
        reasons = [frozen.reason for frozen in coupling.frozen if str(frozen.sites[0]) in sites]
        texts[lane] = f"stays ({'; '.join(dict.fromkeys(reasons))}): {', '.join(sites)}"
    return texts


def _union(lanes: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lane for some in lanes for lane in some))


def _op(node: Node) -> str:
    """Name of what a call computes, without ``aten.`` and overload."""
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "aten" else ".".join(parts[:2])
