"""The blocks around every label, kept once for each different set of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curlfx.coupling.vectors import Edges, Ints


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Free blocks that labels are in.

    Attributes:
        which: ``(labels,)`` row of ``blocks`` for every label; row 0 says that it is in none.
        blocks: ``(sets, depth)`` roots of blocks, ascending, 0 for none.
    """

    which: Ints
    blocks: Ints

    def around(self, labels: Ints) -> Ints:
        """Blocks of every label: ``(*labels, depth)``, 0 for none."""
        return np.asarray(self.blocks[self.which[labels]])

    def pairs(self, labels: Ints) -> Edges:
        """Positions in ``labels`` ``(n,)`` and the blocks there, one pair for each block."""
        which = self.which[labels]
        inside = np.flatnonzero(which)
        found = self.blocks[which[inside]]
        position, level = np.nonzero(found)
        return inside[position], found[position, level]

    @property
    def depth(self) -> Ints:
        """In how many blocks every label is ``(labels,)``."""
        return np.asarray((self.blocks != 0).sum(axis=1)[self.which], np.int64)


def nowhere(size: int) -> Surroundings:
    """Labels that are in no blocks."""
    return Surroundings(np.zeros(size, np.int64), np.zeros((1, 1), np.int64))


def surroundings(pairs: Edges, size: int) -> Surroundings:
    """Collect what is around each label.

    Args:
        pairs: Labels ``(n,)`` and the blocks ``(n,)`` around them, sorted by both, each pair once.
        size: Number of labels.
    """
    label, block = pairs
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    signature = np.random.default_rng(0).integers(1, 2**63, size=size, dtype=np.uint64)
    if not starts.size:
        return nowhere(size)
    sums = np.add.reduceat(signature[block], starts)
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    which = np.zeros(size, np.int64)
    which[label[starts]] = inverse + 1
    counts = np.diff(starts, append=label.size)[first]
    blocks = np.zeros((first.size + 1, int(counts.max())), np.int64)
    row = np.repeat(np.arange(first.size), counts)
    level = np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)
    blocks[row + 1, level] = block[starts[first][row] + level]
    return Surroundings(which, blocks)
