"""Merge ties, spread frozen labels, and settle which blocks must stay rectangular: all channels at once, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from curlfx.labels.store import Freeze, LabelStore

Ints = npt.NDArray[np.int64]

_UNMADE = "no layer computes these channels"
_JOINED = "joined with channels that have no labels"


@dataclass(frozen=True)
class Resolved:
    """Labels merged into roots.

    Attributes:
        roots: ``(labels,)``: for every raw label the smallest label tied to it; 0 where frozen.
        components: ``(labels,)``: the same before freezing (used to say why something is frozen).
        freezes: All freezes, those found here included.
        blocks: Disjoint sets of rows: each a matrix ``(blocks, width)`` of roots, equal counts per row required.
        statistics: ``(labels,)`` bool: a normalisation's statistics run over this root.
    """

    roots: Ints
    components: Ints
    freezes: tuple[Freeze, ...]
    blocks: tuple[Ints, ...]
    statistics: npt.NDArray[np.bool_]


def resolve(store: LabelStore) -> Resolved:
    """Settle a labelling. Ends after finitely many rounds: every round only adds ties or freezes."""
    left, right, freezes = _edges(store)
    freezes = [*store.freezes, *freezes]
    balances = _unique_matrices(store)
    while True:
        components = _components(store.size, left, right)
        roots = _freeze(components, freezes)
        more = _unmade(store, roots)
        if more:
            freezes.extend(more)
            continue
        blocks, ties = _settle_blocks(balances, roots)
        if not ties:
            break
        left = np.concatenate([left, *(pair[0] for pair in ties)])
        right = np.concatenate([right, *(pair[1] for pair in ties)])
    statistics = np.zeros(store.size, dtype=bool)
    for labels in store.statistics:
        statistics[roots[labels.numpy()]] = True
    statistics[0] = False
    return Resolved(roots, components, tuple(freezes), tuple(blocks), statistics)


def distinct(values: Ints) -> Ints:
    """The different values, ascending ``(k,)``; for the short, mostly sorted vectors here faster than ``np.unique``."""
    line = np.sort(values, axis=None)
    return line[np.flatnonzero(np.diff(line, prepend=line[:1] - 1))]


def distinct_rows(matrix: Ints) -> Ints:
    """The different rows of a matrix ``(k, columns)``, by their first element, then by where they came first."""
    found = {row.tobytes(): index for index, row in reversed(list(enumerate(matrix)))}
    rows = matrix[sorted(found.values())]
    return np.asarray(rows[np.argsort(rows[:, 0], kind="stable")])


def _edges(store: LabelStore) -> tuple[Ints, Ints, list[Freeze]]:
    """Ties as two vectors of labels; ties to label 0 come back as freezes."""
    left: list[Ints] = [np.zeros(0, np.int64)]
    right: list[Ints] = [np.zeros(0, np.int64)]
    freezes = []
    for tie in store.ties:
        a, b = tie.a.numpy(), tie.b.numpy()
        free = (a != 0) & (b != 0)
        if not free.all():
            freezes.append(Freeze(torch.from_numpy(np.maximum(a, b)[~free]), tie.node, _JOINED))
            a, b = a[free], b[free]
        left.append(a)
        right.append(b)
    return np.concatenate(left), np.concatenate(right), freezes


def _unique_matrices(store: LabelStore) -> list[Ints]:
    """Balance matrices without repeated rows, each matrix once."""
    found: dict[bytes, Ints] = {}
    for balance in store.balances:
        matrix = distinct_rows(balance.matrix.numpy())
        if matrix.shape[0] > 1:
            found.setdefault(matrix.tobytes() + bytes(str(matrix.shape), "ascii"), matrix)
    return list(found.values())


def _components(size: int, left: Ints, right: Ints) -> Ints:
    """Smallest label of every connected component, for every label."""
    graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    first = np.full(int(component.max()) + 1, size, np.int64)
    np.minimum.at(first, component, np.arange(size))
    return np.asarray(first[component], np.int64)


def _freeze(components: Ints, freezes: list[Freeze]) -> Ints:
    """Roots, with 0 for every component that any freeze touches."""
    gone = np.zeros(components.size, dtype=bool)
    for freeze in freezes:
        gone[components[freeze.labels.numpy()]] = True
    return np.where(gone[components], 0, components)


def _unmade(store: LabelStore, roots: Ints) -> list[Freeze]:
    """Freeze channels that no layer computes (constant inputs, tables): removing them would remove data."""
    made = np.zeros(roots.size, dtype=bool)
    made[0] = True
    for labels in (*store.producers, *store.retired):
        made[roots[labels.numpy()]] = True
    lonely = np.flatnonzero(~made[roots])
    return [Freeze(torch.from_numpy(lonely), "", _UNMADE)] if lonely.size else []


def _settle_blocks(balances: list[Ints], roots: Ints) -> tuple[list[Ints], list[tuple[Ints, Ints]]]:
    """Blocks that can be kept balanced freely, and ties for those that cannot.

    A matrix is clean when each row holds distinct free channels and two rows hold the same channels or none in common.
    Anything else (frozen entries, overlaps, two ways of cutting the same channels) falls back to tying positions
    across rows, which keeps every row's count equal whatever is removed.
    """
    clean: list[tuple[Ints, Ints]] = []
    ties: list[tuple[Ints, Ints]] = []
    for raw in balances:
        matrix = roots[raw]
        if (matrix == matrix[:1]).all():
            continue
        rows = distinct_rows(np.sort(matrix, axis=1))
        if rows.shape[0] == 1:
            continue
        if (matrix != 0).all() and distinct(rows).size == rows.size:
            clean.append((rows, raw))
        else:
            ties.append(_columns(raw))
    blocks = _compatible(clean, ties, roots.size)
    return blocks, ties


def _columns(raw: Ints) -> tuple[Ints, Ints]:
    """Ties of every row to the first one, position by position."""
    first = np.broadcast_to(raw[:1], raw.shape)
    return raw[1:].reshape(-1), np.ascontiguousarray(first[1:]).reshape(-1)


def _compatible(clean: list[tuple[Ints, Ints]], ties: list[tuple[Ints, Ints]], size: int) -> list[Ints]:
    """One set of blocks per set of channels, the finest cut.

    A cut whose rows are made of whole blocks of a finer one (q, k, v made of heads) holds as soon as all these blocks
    keep equal counts, so their sets become one. Cuts that overlap in any other way are tied instead.
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
