"""Balances: rows of channels that must keep equal counts, and the blocks that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from curlfx.coupling.surroundings import Surroundings
from curlfx.coupling.vectors import Edges, Ints, among, distinct, distinct_rows
from curlfx.labels.store import Balance


@dataclass(frozen=True)
class Rows:
    """A balance as arrays: ``matrix`` ``(rows, width)`` of labels and the labels ``around`` its rows ``(rows,)``."""

    matrix: Ints
    around: Ints


@dataclass(frozen=True)
class Inner:
    """Free blocks that the entries of a balanced matrix are in, but for those of its rows.

    Attributes:
        roots: ``(rows, width)`` the root of the block smaller than a row that each entry is in, 0 for none.
        tangled: Whether some entry is in several of them; ``roots`` then shows one.
        found: ``(k,)`` all of them.
        larger: ``(k,)`` blocks that hold whole rows and are not around these rows themselves.
    """

    roots: Ints
    tangled: bool
    found: Ints
    larger: Ints


@dataclass
class Settled:
    """What a round over all balances found: blocks, and what has to be done before the next round."""

    blocks: tuple[Ints, ...] = ()
    aligned: list[Edges] = field(default_factory=list)
    balances: list[Rows] = field(default_factory=list)
    frozen: list[Ints] = field(default_factory=list)


def settle_blocks(balances: Sequence[Rows], roots: Ints, outer: Surroundings) -> Settled:
    """Blocks that can be kept balanced freely, and alignments for those that cannot.

    A matrix is clean when each row holds distinct free channels and two rows hold the same channels or none in common.
    Anything else (frozen entries, overlaps, two ways of cutting the same channels) falls back to aligning positions
    across rows, which keeps every row's count equal whatever is removed.

    Smaller blocks that go whole must leave the rows equal too: they are balanced themselves, or they stay.
    """
    result = Settled()
    clean: list[Edges] = []
    known = {balance.matrix.tobytes() for balance in balances}
    for balance in balances:
        raw = balance.matrix
        matrix, inner = roots[raw], _inner(balance, roots, outer)
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
                result.balances.append(Rows(smaller, balance.around))
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


def _inner(balance: Rows, roots: Ints, outer: Surroundings) -> Inner | None:
    """Free blocks in a balance that its rows do not answer for; None where there are none."""
    matrix, size = balance.matrix, roots.size
    if not outer.which[matrix].any():
        return None
    place, block = outer.pairs(matrix.reshape(-1))
    row, own = outer.pairs(balance.around)
    known = np.concatenate([row * size + own, np.arange(len(matrix)) * size + roots[balance.around]])
    key = place // matrix.shape[1] * size + block
    _, which, count = np.unique(key, return_inverse=True, return_counts=True)
    foreign = ~among(key, known)
    cutting = foreign & (count[which] < matrix.shape[1])
    larger = distinct(block[foreign & ~cutting])
    if not cutting.any() and not larger.size:
        return None
    place, block = place[cutting], block[cutting]
    result = np.zeros(matrix.size, np.int64)
    result[place] = block
    return Inner(result.reshape(matrix.shape), distinct(place).size < place.size, distinct(block), larger)


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


def unique_balances(balances: list[Balance]) -> list[Rows]:
    """Balances without repeated rows, each once."""
    found: dict[bytes, Rows] = {}
    for balance in balances:
        together = distinct_rows(torch.column_stack([balance.matrix, balance.around]).numpy())
        if together.shape[0] > 1:
            key = together.tobytes() + bytes(str(together.shape), "ascii")
            found.setdefault(key, Rows(np.ascontiguousarray(together[:, :-1]), together[:, -1]))
    return list(found.values())
