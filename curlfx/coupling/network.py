"""The coupling graph that people see: sites and joins as nodes, ties as edges, and the path that explains a tie."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx
import numpy as np
from torch.fx import Node

from curlfx.coupling.chains import BALANCES, KINDS, Bools, Chains, Ints, Link, Step
from curlfx.coupling.propagate import Labelling
from curlfx.coupling.vectors import distinct
from curlfx.errors import KeepError, did_you_mean

__all__ = ["Step", "network", "path", "site_of"]


def network(labelling: Labelling, channel_of: Ints, places: Mapping[str, Node]) -> nx.MultiGraph[str]:
    """Build the coupling graph.

    Args:
        labelling: The walk's record.
        channel_of: Channel number of every raw label ``(labels,)``, 0 for what stays.
        places: FX nodes by name, for source lines.

    Returns:
        Nodes with ``labels`` (raw ones), ``channels`` (their numbers), ``free`` and ``stays`` (labels that may go, by
        themselves or with their block, and those that stay), ``site`` (a parameter's axis, or a join), ``node`` (of a
        join) and ``made`` (a layer computes these channels); edges with ``node``, ``op``, ``where``, ``kind`` (one of
        `curlfx.coupling.chains.KINDS`), ``channels`` and ``stays`` (how many pairs stay). The graph itself has
        ``chains`` and ``channel_of``.
    """
    store = labelling.store
    chains = Chains(store, places)
    made = np.zeros(store.size, dtype=bool)
    for produced in store.producers:
        made[produced.numpy()] = True
    graph: nx.MultiGraph[str] = nx.MultiGraph(chains=chains, channel_of=channel_of)
    free = chains.led(channel_of > 0)
    for name, origin in zip(chains.titles, store.origins, strict=True):
        labels = np.arange(origin.start, origin.start + origin.size)
        node = "" if origin.parameter else origin.name
        graph.add_node(name, site=origin.parameter, node=node, made=bool(made[labels].all()))
        _describe(graph, name, labels, labels, channel_of, free)
    for link in chains.links:
        if link.kind != BALANCES:
            _add_edges(graph, link, chains, channel_of, free)
    for tie in store.attached:  # the axis of a grouped weight: what it reads or makes took the place of its own labels
        name, origin = chains.title(int(tie.a[0])), store.origin_of(int(tie.b.max()))
        _describe(graph, name, tie.a.numpy(), tie.b.numpy(), channel_of, free)
        graph.nodes[name]["made"] = not origin.parameter and origin.name == tie.node  # of a transposed convolution
    return graph


def path(graph: nx.MultiGraph[str], a: str, b: str) -> list[Step]:
    """The shortest chain of ties between channels of two sites that are not frozen.

    Sites that share no channel may still be joined by blocks that go as a whole.

    Raises: KeepError for an unknown site, or sites that share none.
    """
    chains: Chains = graph.graph["chains"]
    start, end = site_of(graph, a), site_of(graph, b)
    free = [graph.nodes[name]["free"] for name in (start, end)]
    shared = np.intersect1d(graph.nodes[start]["channels"], graph.nodes[end]["channels"]).size
    for reach in range(1, len(KINDS) + bool(shared)):  # to be counted together ties only what is one channel
        found = chains.between(free[0], free[1], KINDS[:reach])
        if found is not None:
            return found
    staying = [name for name, labels in zip((start, end), free, strict=True) if not labels.size]
    raise KeepError(f"{start} and {end} share no coupled channel: {_apart(dict.fromkeys(staying))}")


def site_of(graph: nx.MultiGraph[str], name: str) -> str:
    """The site that a parameter, a module or ``name[axis]`` means. Raises: KeepError."""
    if name in graph:
        return name
    parameters = [site.rpartition("[")[0] for site in graph]
    for wanted in (name, f"{name}.weight"):
        if wanted in parameters:
            return list(graph)[parameters.index(wanted)]
    known = [*graph.nodes, *dict.fromkeys([*parameters, *(parameter.rpartition(".")[0] for parameter in parameters)])]
    raise KeepError(f"{name!r} is no site of this network{did_you_mean(name, known)}")


def _apart(staying: Mapping[str, None]) -> str:
    if not staying:
        return "they can be slimmed independently"
    verb, them = ("stay", "them") if len(staying) > 1 else ("stays", "it")
    return f"{' and '.join(staying)} {verb}; explain {them} alone to see why"


def _describe(graph: nx.MultiGraph[str], name: str, own: Ints, shown: Ints, channel_of: Ints, free: Bools) -> None:
    """Note what a node's labels stand for: ``own`` ones are linked, ``shown`` ones ``(n,)`` say which channels."""
    going = free[shown]
    graph.nodes[name].update(
        labels=distinct(shown),
        channels=_numbers(channel_of[shown]),
        free=distinct(own[going]),
        stays=distinct(shown[~going]),
    )


def _add_edges(graph: nx.MultiGraph[str], link: Link, chains: Chains, channel_of: Ints, free: Bools) -> None:
    left, right = chains.owners(link.a), chains.owners(link.b)
    pairs, first, index = np.unique(np.stack((left, right)), axis=1, return_index=True, return_inverse=True)
    op, place = chains.source(link.node)
    for number, at in enumerate(first.tolist()):
        ends = chains.title(int(link.a[at])), chains.title(int(link.b[at]))
        mine = index == number
        channels = _numbers(channel_of[np.concatenate((link.a[mine], link.b[mine]))])
        if pairs[0, number] != pairs[1, number]:
            stays = int((~free[link.b[mine]]).sum())
            graph.add_edge(*ends, node=link.node, op=op, where=place, kind=link.kind, channels=channels, stays=stays)


def _numbers(channels: Ints) -> Ints:
    found = distinct(channels)
    return found[found > 0]
