"""Ties label by label: the shortest chain from some labels to others, and what pins labels that stay.

The graph that people see joins whole axes. Two axes that hang together there need not share a channel (a concatenation
hangs together with both of its parts), so what explains a tie is looked for among the labels themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from torch.fx import Node

from curlfx.coupling.vectors import among, distinct
from curlfx.graph.source import where
from curlfx.labels.store import LabelStore

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

TIES, ALIGNMENTS, NESTS, BALANCES = "tie", "alignment", "nest", "balance"
KINDS = (TIES, ALIGNMENTS, NESTS, BALANCES)
"""What links labels, the closest first: the same channel; the same place in another block; a part of a block; counted
together."""


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
        return f"{self.a} ─ {self.b}  by {self.by}"

    @property
    def by(self) -> str:
        """What ties the two sides, in words."""
        if not self.node:
            return "channels of one block"
        details = ", ".join(filter(None, (self.op, self.where)))
        return f"{self.node} ({details})" if details else self.node


@dataclass(frozen=True)
class Link:
    """Pairs of labels that one node links, none of them frozen from the start.

    Attributes:
        a: ``(n,)`` labels.
        b: ``(n,)`` labels that go with them.
        node: Name of the FX node; "" where there is none.
        kind: One of `KINDS`.
    """

    a: Ints
    b: Ints
    node: str
    kind: str


@dataclass(frozen=True)
class Pinned:
    """Labels ``(n,)`` that one node keeps for one reason."""

    labels: Ints
    node: str
    reason: str


class Chains:
    """All links of one labelling.

    Args:
        store: The labelling's record.
        nodes: FX nodes by name, in the order of the graph.

    Attributes:
        links: Pairs of labels that go together, in order of the walk.
        nodes: As given.
        titles: Name of every origin of the store: site, join or blocks.
    """

    def __init__(self, store: LabelStore, nodes: Mapping[str, Node]) -> None:
        self.links = _links(store)
        self._size = store.size
        self.nodes = nodes
        self.titles = _titles(store)
        self._starts = np.array([origin.start for origin in store.origins], np.int64)
        self._pins = _pins(store)
        self._reached: dict[int, tuple[Ints, Ints]] = {}

    def owners(self, labels: Ints) -> Ints:
        """Index of the origin of every label ``(n,)``."""
        return np.searchsorted(self._starts, labels, side="right") - 1

    def title(self, label: int) -> str:
        """The site or join that a label was made for."""
        return self.titles[int(self.owners(np.array([label]))[0])]

    def source(self, node: str) -> tuple[str, str]:
        """What a node computes and the user's line; "" for what is unknown."""
        found = self.nodes.get(node)
        return ("", "") if found is None else (str(found.target), where(found))

    def led(self, free: Bools) -> Bools:
        """Which labels may go: ``(labels,)`` those of free channels, and those in blocks that may go."""
        components = self._pinned_by(1)[0]
        nests = [link for link in self.links if link.kind == NESTS]
        while True:
            going = np.zeros(self._size, dtype=bool)
            for nest in nests:
                going[components[nest.a[free[nest.b]]]] = True
            more = free | going[components]
            more[0] = False
            if (more == free).all():
                return free
            free = more

    def between(self, a: Ints, b: Ints, kinds: Sequence[str] = (TIES,)) -> list[Step] | None:
        """The shortest chain of links from any label of ``a`` to any of ``b``; None where there is none.

        Shapes: a ``(n,)``, b ``(m,)`` raw labels.
        """
        links = [link for link in self.links if link.kind in kinds]
        way = self._way(a, b, links)
        if way is None:
            return None
        steps: list[Step] = []
        for left, right in pairwise(way):
            node = next(link.node for link in links if _has(link, left, right))
            step = Step(self.title(left), self.title(right), node, *self.source(node))
            if not steps or step != steps[-1]:
                steps.append(step)
        return steps

    def pins(self, labels: Ints) -> list[tuple[Ints, list[Pinned]]]:
        """Labels that stay, parted by what keeps them: all pins that they hang on, in order of the walk.

        What hangs on no pin by ties alone is followed over the other kinds of links, and left out if that ends nowhere.

        Shapes: labels ``(n,)`` raw labels that stay, each part fewer.
        """
        result = []
        for reach in range(1, len(KINDS) + 1):
            components, first = self._pinned_by(reach)
            for found in distinct(first[labels]).tolist():
                part = labels[first[labels] == found]
                if found < 0:
                    continue
                mine = distinct(components[part])
                result.append((part, [pin for pin in self._pins if among(components[pin.labels], mine).any()]))
            labels = labels[first[labels] < 0]
            if not labels.size:
                break
        return result

    def _pinned_by(self, reach: int) -> tuple[Ints, Ints]:
        """Per label its component under the first ``reach`` kinds of links, and the index of its first pin or -1."""
        if reach not in self._reached:
            left, right = self._ends([link for link in self.links if link.kind in KINDS[:reach]])
            graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(self._size, self._size))
            components = np.asarray(connected_components(graph, directed=False)[1], np.int64)
            first = np.full(self._size, -1, np.int64)
            for index, pin in reversed(list(enumerate(self._pins))):
                first[components[pin.labels]] = index
            self._reached[reach] = components, np.asarray(first[components], np.int64)
        return self._reached[reach]

    def _ends(self, links: Sequence[Link]) -> tuple[Ints, Ints]:
        none = np.zeros(0, np.int64)
        return np.concatenate([none, *(link.a for link in links)]), np.concatenate([none, *(link.b for link in links)])

    def _way(self, a: Ints, b: Ints, links: Sequence[Link]) -> list[int] | None:
        """Labels from ``a`` to ``b``, breadth first; one more vertex stands for all of ``a``."""
        left, right = self._ends(links)
        left = np.concatenate([np.full(a.size, self._size), left])
        right = np.concatenate([a, right])
        shape = (self._size + 1, self._size + 1)
        graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=shape).tocsr()
        order, before = breadth_first_order(graph, self._size, directed=False)
        reached = order[among(order, b)]
        if not reached.size:
            return None
        way = [int(reached[0])]
        while before[way[-1]] != self._size:
            way.append(int(before[way[-1]]))
        return way[::-1]


def _titles(store: LabelStore) -> tuple[str, ...]:
    """Names of sites (``name[axis]``), of places that make channels, and of blocks; each once."""
    blocks = {int(labels[0]) for labels in store.rows}
    used: dict[str, int] = {}
    found = []
    for origin in store.origins:
        name = f"{origin.name}[{origin.axis}]"
        if not origin.parameter:
            name = f"{name} (blocks)" if origin.start in blocks else f"{origin.name} (channels made here)"
        used[name] = used.get(name, 0) + 1
        found.append(name if used[name] == 1 else f"{name} {used[name]}")
    return tuple(found)


def _links(store: LabelStore) -> list[Link]:
    kinds = ((TIES, [*store.ties, *store.attached]), (ALIGNMENTS, store.alignments))
    links = [Link(tie.a.numpy(), tie.b.numpy(), tie.node, kind) for kind, ties in kinds for tie in ties]
    links += [Link(nest.child.numpy(), nest.parent.numpy(), nest.node, NESTS) for nest in store.nests]
    for balance in store.balances:
        matrix = balance.matrix.numpy()
        first = np.broadcast_to(matrix[:1], matrix.shape)
        links.append(Link(matrix.reshape(-1), first.reshape(-1), balance.node, BALANCES))
    return [_free(link) for link in links]


def _free(link: Link) -> Link:
    real = (link.a != 0) & (link.b != 0)
    return Link(link.a[real], link.b[real], link.node, link.kind)


def _pins(store: LabelStore) -> list[Pinned]:
    """What was frozen on the walk, then what is tied to elements without labels."""
    pins = [Pinned(freeze.labels.numpy(), freeze.node, freeze.reason) for freeze in store.freezes]
    for tie in store.ties:
        a, b = tie.a.numpy(), tie.b.numpy()
        half = (a == 0) ^ (b == 0)
        if half.any():
            pins.append(Pinned(np.maximum(a, b)[half], tie.node, "joined with channels that have no labels"))
    return [
        pin for pin in (Pinned(pin.labels[pin.labels > 0], pin.node, pin.reason) for pin in pins) if pin.labels.size
    ]


def _has(link: Link, a: int, b: int) -> bool:
    return bool((((link.a == a) & (link.b == b)) | ((link.a == b) & (link.b == a))).any())
