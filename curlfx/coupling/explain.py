"""What one axis of a parameter is to the coupling: which groups its channels are in, and why the others stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curlfx.coupling.chains import KINDS, Chains, Ints, Pinned, Step
from curlfx.coupling.coupling import Coupling, GroupId
from curlfx.coupling.network import site_of

UNMADE = "no layer computes these channels"
"""Why channels stay that nothing pins: tables and constants are data, not channels of a layer."""


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
        others: The same channels are pinned by these too: ``reason (node)``.
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
        made: Whether a layer computes its channels here (rows of its weight), rather than reads or carries them.
        groups: How many of its channels are in which group, in order of the groups.
        stays: How many are in none.
    """

    site: str
    made: bool
    groups: dict[GroupId, int]
    stays: int

    @property
    def width(self) -> int:
        """Number of channels."""
        return sum(self.groups.values()) + self.stays


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
        names = [site for site in axes if known[site].made or known[site].groups] or axes
    return tuple(Explanation(known[site], _pins(coupling, site)) for site in names)


def places(coupling: Coupling) -> dict[str, Place]:
    """Every site and join of the coupling graph by name, in its order."""
    group_of = np.zeros(coupling.total + 1, np.int64)
    for number, group in enumerate(coupling.groups):
        group_of[group.channels] = number
    found = {}
    for site, data in coupling.graph.nodes(data=True):
        numbers, counts = np.unique(group_of[data["channels"]], return_counts=True)
        groups = {coupling.groups[n].id: c for n, c in zip(numbers.tolist(), counts.tolist(), strict=True)}
        found[site] = Place(site, bool(data["made"]), groups, int(data["stays"].size))
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
    path = next(
        (
            way
            for reach in range(1, len(KINDS) + 1)
            if (way := chains.between(labels, first.labels, KINDS[:reach])) is not None
        ),
        [],
    )
    others = dict.fromkeys(
        f"{pin.reason} ({pin.node})" if pin.node else pin.reason
        for pin in more
        if (pin.reason, pin.node) != (first.reason, first.node)
    )
    return Pin(int(labels.size), first.reason, first.node, *chains.source(first.node), tuple(path), tuple(others))
