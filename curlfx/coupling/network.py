"""The coupling graph that people see: sites and joins as nodes, ties as edges, and the path that explains a tie."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np
from torch.fx import Node

from curlfx.coupling.propagate import Labelling
from curlfx.coupling.resolve import Ints
from curlfx.errors import KeepError
from curlfx.graph.source import where
from curlfx.labels.store import Origin, Tie


@dataclass(frozen=True)
class Step:
    """One tie on the way from a site to another.

    Attributes:
        a: Site (``name[axis]``) or join (a node that makes channels) on one side.
        b: The same on the other side.
        node: FX node that ties them.
        op: What it computes.
        where: The user's line, "" when unknown.
    """

    a: str
    b: str
    node: str
    op: str
    where: str

    def __str__(self) -> str:
        return f"{self.a} ─ {self.b}  by {self.node} ({self.op}{', ' + self.where if self.where else ''})"


def network(labelling: Labelling, channel_of: Ints, places: Mapping[str, Node]) -> nx.MultiGraph[str]:
    """Build the coupling graph.

    Args:
        labelling: The walk's record.
        channel_of: Channel number of every raw label ``(labels,)``, 0 for what stays.
        places: FX nodes by name, for source lines.

    Returns:
        Nodes with ``channels`` (their channel numbers) and ``site`` (a parameter's axis, or a join); edges with
        ``node``, ``op``, ``where`` and ``channels``.
    """
    store = labelling.store
    graph: nx.MultiGraph[str] = nx.MultiGraph()
    starts = np.array([origin.start for origin in store.origins], np.int64)
    for origin in store.origins:
        channels = channel_of[origin.start : origin.start + origin.size]
        graph.add_node(_title(origin), channels=_free(channels), site=origin.parameter)
    for tie in (*store.ties, *store.attached):
        _add_edges(graph, tie, store.origins, starts, channel_of, places)
    for tie in store.attached:
        name = _title(store.origin_of(int(tie.a[0])))
        graph.nodes[name]["channels"] = _free(channel_of[tie.b.numpy()])
    return graph


def path(graph: nx.MultiGraph[str], a: str, b: str) -> list[Step]:
    """The shortest chain of ties between two sites that share coupled channels.

    Raises: KeepError for an unknown site, or sites that share none.
    """
    start, end = _site(graph, a), _site(graph, b)
    common = np.intersect1d(graph.nodes[start]["channels"], graph.nodes[end]["channels"])
    if not common.size:
        raise KeepError(f"{start} and {end} share no coupled channel: they can be slimmed independently, or one stays")
    shared: nx.Graph[str] = nx.Graph()
    for left, right, data in graph.edges(data=True):
        if np.isin(data["channels"], common).any() and not shared.has_edge(left, right):
            shared.add_edge(left, right, **data)
    if start == end:
        return []
    names = nx.shortest_path(shared, start, end)
    return [Step(x, y, *(shared.edges[x, y][key] for key in ("node", "op", "where"))) for x, y in pairwise(names)]


def _add_edges(
    graph: nx.MultiGraph[str],
    tie: Tie,
    origins: list[Origin],
    starts: Ints,
    channel_of: Ints,
    places: Mapping[str, Node],
) -> None:
    a, b = tie.a.numpy(), tie.b.numpy()
    real = (a != 0) & (b != 0)
    left = np.searchsorted(starts, a[real], side="right") - 1
    right = np.searchsorted(starts, b[real], side="right") - 1
    pairs, index = np.unique(left * len(origins) + right, return_inverse=True)
    node = places.get(tie.node)
    op, place = (str(node.target), where(node)) if node is not None else ("", "")
    for number, pair in enumerate(pairs.tolist()):
        ends = _title(origins[pair // len(origins)]), _title(origins[pair % len(origins)])
        channels = _free(channel_of[b[real][index == number]])
        if ends[0] != ends[1]:
            graph.add_edge(*ends, node=tie.node, op=op, where=place, channels=channels)


def _title(origin: Origin) -> str:
    return f"{origin.name}[{origin.axis}]" if origin.parameter else f"{origin.name} (channels made here)"


def _free(channels: Ints) -> Ints:
    found = np.unique(channels)
    return found[found > 0]


def _site(graph: nx.MultiGraph[str], name: str) -> str:
    for title in (name, f"{name}[0]", f"{name}[1]", f"{name}.weight[0]"):
        if title in graph:
            return title
    near = difflib.get_close_matches(name, [*graph.nodes, *{title.partition("[")[0] for title in graph.nodes}], 1)
    raise KeepError(f"{name!r} is no site of this network{f'; did you mean {near[0]!r}?' if near else ''}")
