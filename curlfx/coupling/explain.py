"""What one axis of a parameter is to the coupling: which groups its channels are in, and why the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curlfx.coupling.chains import KINDS, Chains, Ints, Pinned, Step
from curlfx.coupling.coupling import Coupling, GroupId
from curlfx.coupling.network import site_of
from curlfx.coupling.vectors import distinct

UNMADE = "no layer computes these channels"
"""Why channels stay that nothing pins: tables and constants are data, not channels of a layer."""


Role = Literal["makes", "reads", "has"]


@dataclass(frozen=True)
class Pin:
    """Channels of a site that stay.

    Attributes:
        width: How many.
        reason: In words.
        node: FX node that pins them; "" where none does.
        op: What it computes.
        where: The user's line, "" when unknown.
        path: Ties from the site to what is pinned there; empty where it is the site itself.
        others: Other reasons why they stay, each with its first node: ``reason (node)``.
    """

    width: int
    reason: str
    node: str
    op: str
    where: str
    path: tuple[Step, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """One axis of a parameter, or a node that makes channels.

    Attributes:
        site: ``name[axis]``.
        role: A layer ``makes`` channels with the rows of its weight and ``reads`` them with the columns; others, like a
            normalisation, ``has`` them.
        width: Number of channels; those that are tied to each other (queries and keys) count one by one.
        groups: How many coupled channels of which group it has, in order of the groups.
        stays: How many of its channels are in none.
    """

    site: str
    role: Role
    width: int
    groups: dict[GroupId, int]
    stays: int


@dataclass(frozen=True)
class Explanation:
    """A place with the reasons why channels of it stay.

    Attributes:
        place: The site with its groups.
        pins: One per reason and node.
    """

    place: Place
    pins: tuple[Pin, ...]


def explain(coupling: Coupling, name: str) -> tuple[Explanation, ...]:
    """Explain a site (``name[axis]``), or the axes along which channels run of a parameter or a module's weight.

    Raises: KeepError for a name that is none.
    """
    found = site_of(coupling.graph, name)
    known = places(coupling)
    names = [found]
    if found != name:
        parameter = found.rpartition("[")[0]
        axes = [site for site in known if site.rpartition("[")[0] == parameter]
        names = [site for site in axes if known[site].role == "makes" or known[site].groups] or axes
    return tuple(Explanation(known[site], _pins(coupling, site)) for site in names)


def places(coupling: Coupling) -> dict[str, Place]:
    """Every site and join of the coupling graph by name, in its order."""
    group_of = np.zeros(coupling.total + 1, np.int64)
    for number, group in enumerate(coupling.groups):
        group_of[group.channels] = number
    makers = {site.rpartition("[")[0] for site, made in coupling.graph.nodes(data="made") if made}
    found = {}
    for site, data in coupling.graph.nodes(data=True):
        cells = coupling.cells.channels[coupling.cells.number[data["labels"]]]
        channels = distinct(cells[cells > 0])
        numbers, counts = np.unique(group_of[channels], return_counts=True)
        groups = {coupling.groups[n].id: c for n, c in zip(numbers.tolist(), counts.tolist(), strict=True)}
        role: Role = "makes" if data["made"] else "reads" if site.rpartition("[")[0] in makers else "has"
        found[site] = Place(site, role, data["labels"].size, groups, int(data["stays"].size))
    return found


def _pins(coupling: Coupling, site: str) -> tuple[Pin, ...]:
    """Why channels of a site stay, the most channels first."""
    chains: Chains = coupling.graph.graph["chains"]
    labels = coupling.graph.nodes[site]["stays"]
    parts = chains.pins(labels)
    found = [_pin(chains, part, pins) for part, pins in parts]
    rest = labels.size - sum(part.size for part, _ in parts)
    if rest:
        found.append(Pin(rest, UNMADE, "", "", "", (), ()))
    return tuple(sorted(found, key=lambda pin: -pin.width))


def _pin(chains: Chains, labels: Ints, pins: list[Pinned]) -> Pin:
    first, *more = pins
    ways = (chains.between(labels, first.labels, KINDS[:reach]) for reach in range(1, len(KINDS) + 1))
    path = next((way for way in ways if way is not None), [])
    others = {pin.reason: f"{pin.reason} ({pin.node})" if pin.node else pin.reason for pin in reversed(more)}
    others.pop(first.reason, None)
    texts = tuple(reversed(others.values()))
    return Pin(int(labels.size), first.reason, first.node, *chains.source(first.node), tuple(path), texts)
