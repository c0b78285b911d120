"""Merge ties, spread frozen labels, and settle which blocks must stay rectangular: all channels at once, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from curlfx.coupling.balances import settle_blocks, unique_balances
from curlfx.coupling.nesting import Nesting
from curlfx.coupling.surroundings import Surroundings
from curlfx.coupling.vectors import Edges, Ints, merged
from curlfx.labels.compact import Bools
from curlfx.labels.store import Freeze, LabelStore, Tie

_UNMADE = "no layer computes these channels"
_JOINED = "joined with channels that have no labels"
_CROSSING = "blocks of different cuts overlap here"


@dataclass(frozen=True, eq=False)
class Resolved:
    """Labels merged into roots.

    Attributes:
        roots: ``(labels,)``: for every raw label the smallest label tied to it or aligned with it; 0 where frozen.
        outer: The free roots of the blocks that a label is in.
        components: ``(labels,)``: roots before freezing (used to say why something is frozen).
        freezes: All freezes, those found here included.
        blocks: Disjoint sets of rows: each a matrix ``(blocks, width)`` of roots, equal counts per row required.
        statistics: ``(labels,)`` bool: a normalisation's statistics run over this root.
        rows: ``(labels,)`` bool: this root stands for whole blocks.
    """

    roots: Ints
    outer: Surroundings
    components: Ints
    freezes: tuple[Freeze, ...]
    blocks: tuple[Ints, ...]
    statistics: Bools
    rows: Bools

    @cached_property
    def codes(self) -> Ints:
        """One number for every root and the blocks around it ``(labels,)``: root times rows of ``outer``, plus row."""
        return np.asarray(self.roots * len(self.outer.blocks) + self.outer.which)


def resolve(store: LabelStore) -> Resolved:
    """Settle a labelling. Ends after finitely many rounds: every round only adds ties or freezes."""
    tied, freezes = _edges(store.ties)
    aligned, more = _edges(store.alignments)
    freezes = [*store.freezes, *freezes, *more]
    cells = merged(np.arange(store.size), tied)
    components = merged(cells, aligned)
    made = _reached(store, components)
    nests = [(nest.child.numpy(), nest.parent.numpy()) for nest in store.nests]
    nesting = Nesting(store.size, [(child[made[child]], parent[made[child]]) for child, parent in nests])
    projections = [(found.matrix.numpy(), found.shared.numpy()) for found in store.projections]
    projections = [(matrix, shared) for matrix, shared in projections if made[shared].any()]
    products = [tuple(part.numpy() for part in (found.labels, *found.factors)) for found in store.products]
    products = [product for product in products if made[product[0]].any()]
    balances = unique_balances(store.balances)
    while True:
        ties = nesting.settle(cells)
        if not ties:
            exact = nesting.complete(projections, products)
            freezes.extend(Freeze(torch.from_numpy(labels), "", _CROSSING) for labels in exact.frozen)
            ties = exact.ties
            if exact.nests and not ties:
                continue
        if ties:
            cells, components = merged(cells, _joined(ties)), merged(components, _joined(ties))
            continue
        roots = _freeze(components, _with_blocks(freezes, nesting))
        unmade = _unmade(store, roots, nesting)
        if unmade:
            freezes.extend(unmade)
            continue
        outer = nesting.surroundings(roots)
        settled = settle_blocks(balances, roots, outer)
        if not (settled.aligned or settled.frozen or settled.balances):
            break
        components = merged(components, _joined(settled.aligned))
        balances.extend(settled.balances)
        freezes.extend(Freeze(torch.from_numpy(labels), "", _CROSSING) for labels in settled.frozen)
    rows = np.zeros(store.size, dtype=bool)
    for each in store.rows:
        rows[roots[each.numpy()]] = True
    rows[0] = False
    statistics = _statistics(store, roots, outer)
    return Resolved(roots, outer, components, tuple(freezes), settled.blocks, statistics, rows)


def _statistics(store: LabelStore, roots: Ints, outer: Surroundings) -> Bools:
    """Roots ``(labels,)`` whose removal changes what a normalisation averages over.

    A block that holds all of a statistic's channels goes with the statistic, and changes none.
    """
    changed = np.zeros(roots.size, dtype=bool)
    for each in store.statistics:
        labels = each.numpy()
        changed[roots[labels]] = True
        _, block = outer.pairs(labels)
        blocks, counts = np.unique(block, return_counts=True)
        changed[blocks[counts < labels.size]] = True
    changed[0] = False
    return changed


def _with_blocks(freezes: list[Freeze], nesting: Nesting) -> list[Ints]:
    """Labels that each freeze pins: those it names, and the blocks that they are in where it says so."""
    pinned = []
    for freeze in freezes:
        labels = freeze.labels.numpy()
        pinned.append(labels)
        if freeze.whole:
            pinned.append(nesting.around(labels))
    return pinned


def _edges(ties: list[Tie]) -> tuple[Edges, list[Freeze]]:
    """Ties as two vectors of labels; ties to label 0 come back as freezes."""
    edges: list[Edges] = []
    freezes = []
    for tie in ties:
        a, b = tie.a.numpy(), tie.b.numpy()
        free = (a != 0) & (b != 0)
        if not free.all():
            freezes.append(Freeze(torch.from_numpy(np.maximum(a, b)[~free]), tie.node, _JOINED))
            a, b = a[free], b[free]
        edges.append((a, b))
    return _joined(edges), freezes


def _joined(edges: list[Edges]) -> Edges:
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *(a for a, _ in edges)]), np.concatenate([none, *(b for _, b in edges)])


def _freeze(components: Ints, pinned: list[Ints]) -> Ints:
    """Roots, with 0 for every component that any freeze touches."""
    gone = np.zeros(components.size, dtype=bool)
    for labels in pinned:
        gone[components[labels]] = True
    return np.where(gone[components], 0, components)


def _unmade(store: LabelStore, roots: Ints, nesting: Nesting) -> list[Freeze]:
    """Freeze channels that no layer computes (constant inputs, tables): removing them would remove data.

    A block is made when any of its channels is.
    """
    labels = _makers(store)
    made = np.zeros(roots.size, dtype=bool)
    made[roots[labels]] = True
    made[roots[nesting.around(labels)]] = True
    made[0] = True
    lonely = np.flatnonzero(~made[roots])
    return [Freeze(torch.from_numpy(lonely), "", _UNMADE, whole=False)] if lonely.size else []


def _reached(store: LabelStore, components: Ints) -> Bools:
    """Labels that hang together with something that a layer makes ``(labels,)``; all others stay in any case.

    Tokens, windows and tables of positions are many and in blocks: dropping them early keeps the rest quick.
    """
    links = [(nest.child.numpy(), nest.parent.numpy()) for nest in store.nests]
    for projection in store.projections:
        matrix = projection.matrix.numpy()
        links.append((matrix.reshape(-1), np.broadcast_to(projection.shared.numpy(), matrix.shape).reshape(-1)))
    for product in store.products:
        links += [(product.labels.numpy(), factor.numpy()) for factor in product.factors]
    together = merged(components, _joined([_nonzero(link) for link in links]))
    reached = np.zeros(store.size, dtype=bool)
    reached[together[_makers(store)]] = True
    reached[0] = True
    return np.asarray(reached[together])


def _nonzero(edges: Edges) -> Edges:
    a, b = edges
    free = (a != 0) & (b != 0)
    return a[free], b[free]


def _makers(store: LabelStore) -> Ints:
    """Labels that layers make, or made before their axis got others ``(k,)``."""
    return np.concatenate([np.zeros(0, np.int64), *(made.numpy() for made in (*store.producers, *store.retired))])
