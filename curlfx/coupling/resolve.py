"""Merge ties, spread frozen labels, and settle which blocks must stay rectangular: all channels at once, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from curlfx.coupling.nesting import Edges, Inner, Ints, Nesting
from curlfx.labels.store import Balance, Freeze, LabelStore, Tie

_UNMADE = "no layer computes these channels"
_JOINED = "joined with channels that have no labels"
_CROSSING = "blocks of different cuts overlap here"


@dataclass(frozen=True)
class Resolved:
    """Labels merged into roots.

    Attributes:
        roots: ``(labels,)``: for every raw label the smallest label tied to it or aligned with it; 0 where frozen.
        outer: ``(labels, depth)``: the free roots of the blocks that a label is in, 0 for none.
        components: ``(labels,)``: roots before freezing (used to say why something is frozen).
        freezes: All freezes, those found here included.
        blocks: Disjoint sets of rows: each a matrix ``(blocks, width)`` of roots, equal counts per row required.
        statistics: ``(labels,)`` bool: a normalisation's statistics run over this root.
        rows: ``(labels,)`` bool: this root stands for whole blocks.
    """

    roots: Ints
    outer: Ints
    components: Ints
    freezes: tuple[Freeze, ...]
    blocks: tuple[Ints, ...]
    statistics: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.bool_]

    def members(self, raw: Ints) -> Ints:
        """The free roots that decide about some labels, those of their blocks included, ascending ``(k,)``."""
        found = distinct(np.concatenate([self.roots[raw].reshape(-1), self.outer[raw].reshape(-1)]))
        return found[found > 0]


def resolve(store: LabelStore) -> Resolved:
    """Settle a labelling. Ends after finitely many rounds: every round only adds ties or freezes."""
    ties, freezes = _edges(store.ties)
    aligned, more = _edges(store.alignments)
    nesting = Nesting(store.size, [(nest.child.numpy(), nest.parent.numpy()) for nest in store.nests])
    freezes = [*store.freezes, *freezes, *more]
    projections = [(found.matrix.numpy(), found.shared.numpy()) for found in store.projections]
    products = [tuple(part.numpy() for part in (found.labels, *found.factors)) for found in store.products]
    balances = _unique_balances(store.balances)
    while True:
        same = nesting.settle(_components(store.size, ties))
        if same:
            ties = _appended(ties, same)
            continue
        exact = nesting.complete(projections, products)
        ties = _appended(ties, exact.ties)
        freezes.extend(Freeze(torch.from_numpy(labels), "", _CROSSING) for labels in exact.frozen)
        if exact.ties or exact.nests:
            continue
        components = _components(store.size, _appended(ties, [aligned]))
        roots = _freeze(components, _with_blocks(freezes, nesting))
        unmade = _unmade(store, roots, nesting)
        if unmade:
            freezes.extend(unmade)
            continue
        settled = _settle_blocks(balances, roots, nesting)
        if not (settled.aligned or settled.frozen or settled.balances):
            break
        aligned = _appended(aligned, settled.aligned)
        balances.extend(settled.balances)
        freezes.extend(Freeze(torch.from_numpy(labels), "", _CROSSING) for labels in settled.frozen)
    outer = nesting.outer(roots)
    rows = np.zeros(store.size, dtype=bool)
    for each in store.rows:
        rows[roots[each.numpy()]] = True
    rows[0] = False
    statistics = _statistics(store, roots, outer)
    return Resolved(roots, outer, components, tuple(freezes), settled.blocks, statistics, rows)


def _statistics(store: LabelStore, roots: Ints, outer: Ints) -> npt.NDArray[np.bool_]:
    """Roots ``(labels,)`` whose removal changes what a normalisation averages over.

    A block that holds all of a statistic's channels goes with the statistic, and changes none.
    """
    changed = np.zeros(roots.size, dtype=bool)
    for each in store.statistics:
        labels = each.numpy()
        changed[roots[labels]] = True
        blocks, counts = np.unique(outer[labels], return_counts=True)
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


def distinct(values: Ints) -> Ints:
    """The different values, ascending ``(k,)``; for the short, mostly sorted vectors here faster than ``np.unique``."""
    line = np.sort(values, axis=None)
    return line[np.flatnonzero(np.diff(line, prepend=line[:1] - 1))]


def distinct_rows(matrix: Ints) -> Ints:
    """The different rows of a matrix ``(k, columns)``, by their first element, then by where they came first."""
    found = {row.tobytes(): index for index, row in reversed(list(enumerate(matrix)))}
    rows = matrix[sorted(found.values())]
    return np.asarray(rows[np.argsort(rows[:, 0], kind="stable")])


def _edges(ties: list[Tie]) -> tuple[Edges, list[Freeze]]:
    """Ties as two vectors of labels; ties to label 0 come back as freezes."""
    left: list[Ints] = [np.zeros(0, np.int64)]
    right: list[Ints] = [np.zeros(0, np.int64)]
    freezes = []
    for tie in ties:
        a, b = tie.a.numpy(), tie.b.numpy()
        free = (a != 0) & (b != 0)
        if not free.all():
            freezes.append(Freeze(torch.from_numpy(np.maximum(a, b)[~free]), tie.node, _JOINED))
            a, b = a[free], b[free]
        left.append(a)
        right.append(b)
    return (np.concatenate(left), np.concatenate(right)), freezes


def _appended(edges: Edges, more: Sequence[Edges]) -> Edges:
    return np.concatenate([edges[0], *(pair[0] for pair in more)]), np.concatenate([edges[1], *(p[1] for p in more)])


def _unique_balances(balances: list[Balance]) -> list[_Rows]:
    """Balances without repeated rows, each once."""
    found: dict[bytes, _Rows] = {}
    for balance in balances:
        together = distinct_rows(torch.column_stack([balance.matrix, balance.around]).numpy())
        if together.shape[0] > 1:
            key = together.tobytes() + bytes(str(together.shape), "ascii")
            found.setdefault(key, _Rows(np.ascontiguousarray(together[:, :-1]), together[:, -1]))
    return list(found.values())


def _components(size: int, edges: Edges) -> Ints:
    """Smallest label of every connected component, for every label."""
    graph = coo_array((np.ones(edges[0].size, np.int8), edges), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    first = np.full(int(component.max()) + 1, size, np.int64)
    np.minimum.at(first, component, np.arange(size))
    return np.asarray(first[component], np.int64)


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
    made = np.zeros(roots.size, dtype=bool)
    for labels in (*store.producers, *store.retired):
        made[roots[labels.numpy()]] = True
        made[roots[nesting.around(labels.numpy())]] = True
    made[0] = True
    lonely = np.flatnonzero(~made[roots])
    return [Freeze(torch.from_numpy(lonely), "", _UNMADE, whole=False)] if lonely.size else []


@dataclass(frozen=True)
class _Rows:
    """A balance as arrays: ``matrix`` ``(rows, width)`` of labels and the labels ``around`` its rows ``(rows,)``."""

    matrix: Ints
    around: Ints


@dataclass
class _Settled:
    """What a round over all balances found: blocks, and what has to be done before the next round."""

    blocks: tuple[Ints, ...] = ()
    aligned: list[Edges] = field(default_factory=list)
    balances: list[_Rows] = field(default_factory=list)
    frozen: list[Ints] = field(default_factory=list)


def _settle_blocks(balances: list[_Rows], roots: Ints, nesting: Nesting) -> _Settled:
    """Blocks that can be kept balanced freely, and alignments for those that cannot.

    A matrix is clean when each row holds distinct free channels and two rows hold the same channels or none in common.
    Anything else (frozen entries, overlaps, two ways of cutting the same channels) falls back to aligning positions
    across rows, which keeps every row's count equal whatever is removed.

    Smaller blocks that go whole must leave the rows equal too: they are balanced themselves, or they stay.
    """
    result = _Settled()
    clean: list[Edges] = []
    known = {balance.matrix.tobytes() for balance in balances}
    for balance in balances:
        raw = balance.matrix
        matrix, inner = roots[raw], nesting.inner(raw, balance.around, roots)
        if inner is not None and inner.larger.size:
            result.frozen.append(inner.larger)
            continue
        if (matrix == matrix[:1]).all() and (inner is None or (inner.roots == inner.roots[:1]).all()):
            continue
        if inner is not None:
            smaller = _partition(inner)
            if smaller is None:
                result.frozen.append(inner.found)
            elif smaller.tobytes() not in known:
                result.balances.append(_Rows(smaller, balance.around))
        rows = distinct_rows(np.sort(matrix, axis=1))
        if rows.shape[0] == 1:
            continue
        if (matrix != 0).all() and distinct(rows).size == rows.size:
            clean.append((rows, raw))
        elif inner is None:
            result.aligned.append(_columns(raw))
        else:
            result.frozen.append(inner.found)
    result.blocks = tuple(_compatible(clean, result.aligned, roots.size))
    return result


def _partition(inner: Inner) -> Ints | None:
    """Blocks ``(rows, count)`` that divide every row of a matrix into as many equal parts; None where they do not."""
    if inner.tangled or (inner.roots == 0).any():
        return None
    parts = [np.unique(row, return_counts=True) for row in inner.roots]
    same = all(found.size == parts[0][0].size and (count == parts[0][1][0]).all() for found, count in parts)
    return np.stack([found for found, _ in parts]) if same else None


def _columns(raw: Ints) -> Edges:
    """Matches of every row to the first one, position by position."""
    first = np.broadcast_to(raw[:1], raw.shape)
    return raw[1:].reshape(-1), np.ascontiguousarray(first[1:]).reshape(-1)


def _compatible(clean: list[Edges], ties: list[Edges], size: int) -> list[Ints]:
    """One set of blocks per set of channels, the finest cut.

    A cut whose rows are made of whole blocks of a finer one (q, k, v made of heads) holds as soon as all these blocks
    keep equal counts, so their sets become one. Cuts that overlap in any other way are aligned instead.
    """
    cuts = _Cuts(size)
    for rows, raw in sorted(clean, key=lambda cut: (cut[0].shape[1], -cut[0].shape[0])):
        if not cuts.add(rows, raw):
            ties.append(_columns(raw))
            ties.extend(_columns(other) for other in cuts.raws_on(rows))
    return [blocks for blocks in cuts.blocks if blocks is not None]


class _Cuts:
    """Disjoint sets of blocks, with the matrices that asked for them.

    Args:
        size: Number of labels.
    """

    def __init__(self, size: int) -> None:
        self.blocks: list[Ints | None] = []
        self._raws: list[list[Ints]] = []
        self._owner = np.full(size, -1, np.int64)
        self._row = np.full(size, -1, np.int64)

    def raws_on(self, rows: Ints) -> list[Ints]:
        """The matrices behind every set of blocks that shares channels with ``rows``."""
        owners = distinct(self._owner[rows])
        return [raw for owner in owners[owners >= 0].tolist() for raw in self._raws[owner]]

    def add(self, rows: Ints, raw: Ints) -> bool:
        """Take one more cut ``(blocks, width)``; False where it does not fit to those before, and nothing changes."""
        owner = self._owner[rows]
        owners = distinct(owner)
        known = owners[owners >= 0].tolist()
        found = [blocks for index in known if (blocks := self.blocks[index]) is not None]
        fresh = rows[(owner < 0).all(axis=1)]
        if found:
            widths = {blocks.shape[1] for blocks in found}
            taken = rows[(owner >= 0).all(axis=1)]
            if len(widths) > 1 or len(taken) + len(fresh) < len(rows) or not self._whole(taken, min(widths)):
                return False
            if len(fresh) and rows.shape[1] != min(widths):
                return False
        for index in known:
            self.blocks[index] = None
        joined = [*found, fresh] if len(fresh) else found
        self._put(np.concatenate(joined), [raw, *(each for index in known for each in self._raws[index])])
        return True

    def _whole(self, rows: Ints, width: int) -> bool:
        """Whether every row is made of whole blocks of that width."""
        if rows.shape[1] % width:
            return False
        place = self._owner[rows] * self._row.size + self._row[rows]
        counts = [distinct(line).size for line in place]
        return all(count * width == rows.shape[1] for count in counts)

    def _put(self, blocks: Ints, raws: list[Ints]) -> None:
        self._owner[blocks] = len(self.blocks)
        self._row[blocks] = np.arange(len(blocks))[:, None]
        self.blocks.append(blocks)
        self._raws.append(raws)
