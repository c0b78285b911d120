"""Stages: parts of a network that only one tensor leads into and one leads out of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import networkx as nx
from torch import Tensor
from torch.fx import Node

from curlfx.cost.contraction import contractions
from curlfx.cost.macs import batch_size
from curlfx.coupling import Coupling
from curlfx.errors import ConfigError, did_you_mean
from curlfx.graph import TracedModel
from curlfx.importance.section import Section, calls

FEWEST = 2
"""Contractions that a stage of its own has at least, by default."""
_SPATIAL = 4  # axes of a tensor of images


def separators(traced: TracedModel, coupling: Coupling, logits: Node) -> tuple[Node, ...]:
    """The tensors that every path from the inputs to the logits passes, in graph order, without these two.

    Only those with the batch on their first axis and one label per channel. Sizes that are computed from a tensor's
    shape do not count as paths: they depend on the batch alone.
    """
    flow = _flow(traced)
    above = nx.immediate_dominators(flow, "")
    found: list[str] = []
    name = above.get(logits.name, "")
    while name:
        found.append(name)
        name = above[name]
    nodes = {node.name: node for node in traced.graph.nodes}
    batch = batch_size(traced)
    return tuple(node for node in map(nodes.__getitem__, reversed(found)) if _may_cut(node, coupling, batch))


def choose_cuts(
    found: Sequence[Node], traced: TracedModel, coupling: Coupling, logits: Node, names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Where one stage ends and the next begins, in graph order.

    Args:
        found: The separators.
        traced: The network, in-place ops replaced.
        coupling: Its channels, or those of the network that it was made from.
        logits: What the network is judged by.
        names: Nodes to cut behind. None: the last separator of every resolution, but that of the smallest, where a
            stage has at least two contractions: a stem joins the stage behind it, the head the one before it.

    Raises: ConfigError for a name that is no separator.
    """
    if names is None:
        return _by_resolution(found, traced, coupling, logits)
    known = {node.name: node for node in found}
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None:
        raise ConfigError(
            f"cuts: '{wrong}' is no tensor that every path passes; this network has {', '.join(known) or 'none'}"
            f"{did_you_mean(wrong, known)}"
        )
    return tuple(node.name for node in found if node.name in set(names))


def sections(traced: TracedModel, cuts: Sequence[str], logits: str) -> tuple[Section, ...]:
    """The calls of every stage, which read the cut before it, parameters and sizes."""
    nodes = {node.name: node for node in traced.graph.nodes}
    ends = [nodes[name] for name in (*cuts, logits)]
    starts: list[Node | None] = [None, *ends[:-1]]
    return tuple(_section(traced, start, end) for start, end in zip(starts, ends, strict=True))


def genes_of(section: Section, coupling: Coupling, start: str | None) -> tuple[int, ...]:
    """Positions of the groups whose widths a stage depends on: all that are met in it or come in."""
    owner: dict[int, int] = {}
    for position, group in enumerate(coupling.groups):
        owner.update(dict.fromkeys(group.channels.tolist(), position))
    names = [node.name for node in section.nodes] + ([] if start is None else [start])
    arrays = [array for name in names for array in coupling.channels_in(coupling.labels(name))]
    numbers = {number for array in arrays for number in set(array.ravel().tolist())}
    return tuple(sorted({owner[number] for number in numbers if number in owner}))


def is_size(node: Node) -> bool:
    """Whether a node is a number: a size, or computed from sizes."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), bool | int | float)


def _flow(traced: TracedModel) -> nx.DiGraph[str]:
    """What is computed from the images, from "" on."""
    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_node("")
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            flow.add_edge("", node.name)
        elif node.op == "call_function" and not is_size(node):
            flow.add_edges_from((source.name, node.name) for source in node.all_input_nodes if source.name in flow)
    return flow


def _may_cut(node: Node, coupling: Coupling, batch: int) -> bool:
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    arrays = coupling.channels_in(coupling.labels(node.name))
    return value.ndim > 1 and value.shape[0] == batch and all(array.shape[0] == 1 for array in arrays)


def _by_resolution(found: Sequence[Node], traced: TracedModel, coupling: Coupling, logits: Node) -> tuple[str, ...]:
    images = [node for node in found if node.meta["val"].ndim >= _SPATIAL]
    falling = [above for above, below in pairwise(images) if 1 < _pixels(below) < _pixels(above)]
    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    heavy = [place[node] for node in traced.graph.nodes if contractions(node, coupling.rules)]
    kept: list[Node] = []
    for node in falling:
        begin = place[kept[-1]] if kept else -1
        if sum(begin < each <= place[node] for each in heavy) >= FEWEST:
            kept.append(node)
    while kept and sum(place[kept[-1]] < each <= place[logits] for each in heavy) < FEWEST:
        kept.pop()
    return tuple(node.name for node in kept)


def _pixels(node: Node) -> int:
    return math.prod(node.meta["val"].shape[2:])


def _section(traced: TracedModel, start: Node | None, end: Node) -> Section:
    among: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is start or node in among or is_size(node):
            continue
        among.add(node)
        waiting.extend(node.all_input_nodes)
    return Section(calls(traced.graph.nodes, among), {}, end)


def constants(traced: TracedModel) -> Mapping[Node, Any]:
    """Parameters, buffers and constants of a graph, by node."""
    return {node: _held(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr"}


def _held(traced: TracedModel, name: str) -> Any:
    try:
        return traced.parameter(name)
    except KeyError:  # a constant that is no tensor
        owner, _, key = name.rpartition(".")
        return getattr(traced.module.get_submodule(owner), key)
