"""Channels in blocks, blocks in larger blocks: who goes when a head or a group goes whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from curlfx.coupling.surroundings import Surroundings, nowhere, surroundings
from curlfx.coupling.vectors import Edges, Ints, among, distinct


@dataclass(frozen=True)
class Completion:
    """What has to be added for the nesting to be exact: all empty where it is.

    Attributes:
        nests: Cells and the blocks that they are in.
        ties: Blocks that are the same.
        frozen: Blocks that stay.
    """

    nests: list[Edges]
    ties: list[Edges]
    frozen: list[Ints]


class Nesting:
    """The relation "goes when that block goes" over cells, which are labels merged by ties.

    Args:
        size: Number of labels.
        pairs: Vectors ``(n,)`` of labels and of the labels of their blocks.
    """

    def __init__(self, size: int, pairs: Sequence[Edges]) -> None:
        self._size = size
        none = np.zeros(0, np.int64)
        self._child = np.concatenate([none, *(child for child, _ in pairs)])
        self._parent = np.concatenate([none, *(parent for _, parent in pairs)])
        self._cells = np.arange(size)
        self._near = nowhere(size)
        self._stuck: set[int] = set()

    def settle(self, cells: Ints) -> list[Edges]:
        """Take the cells as they are now ``(labels,)``.

        Two blocks of exactly the same cells are one: they come back as ties, and the call has to be repeated. A block
        all of whose cells are in a larger one is nested in that.
        """
        self._cells = cells
        child, parent = cells[self._child], cells[self._parent]
        apart = (child != parent) & (child != 0) & (parent != 0)
        if not apart.any():
            self._near = nowhere(self._size)
            return []
        direct = self._matrix(child[apart], parent[apart])
        shared = (direct.T @ direct).tocoo()
        sizes = direct.sum(axis=0)
        a, b = shared.coords[0].astype(np.int64), shared.coords[1].astype(np.int64)
        within = (a != b) & (shared.data == sizes[a])
        same = within & (sizes[a] == sizes[b])
        if same.any():
            return [(a[same], b[same])]
        larger = within & (sizes[a] < sizes[b])
        step = ((direct + self._matrix(a[larger], b[larger])) > 0).astype(np.int64)
        above = step
        while (longer := ((above + above @ step) > 0).astype(np.int64)).nnz > above.nnz:
            above = longer
        found = above.tocsr()
        found.sort_indices()
        found = found.tocoo()
        self._near = surroundings((found.coords[0].astype(np.int64), found.coords[1].astype(np.int64)), self._size)
        return []

    def complete(self, projections: Sequence[Edges], products: Sequence[tuple[Ints, ...]]) -> Completion:
        """Make sure that labels stay exactly while what they stand for does.

        Places that blocks share go with whatever smaller block they are in, in every row. A product goes with all of
        its factors and their blocks, and with nothing else: another block is one of the factors' by another name, or
        stays.

        Args:
            projections: Labels ``(rows, width)`` and the labels ``(width,)`` that they share.
            products: Labels ``(n,)`` and their factors ``(n,)``, the aligned one first.
        """
        result = Completion([], [], [])
        if not self._child.size:  # a product brings nests of its own, so there are none either
            return result
        for matrix, shared in projections:
            self._complete_projection(matrix, shared, result)
        for labels, *factors in products:
            self._complete_product(labels, factors, result)
        self._child = np.concatenate([self._child, *(child for child, _ in result.nests)])
        self._parent = np.concatenate([self._parent, *(parent for _, parent in result.nests)])
        return result

    def _complete_projection(self, matrix: Ints, shared: Ints, result: Completion) -> None:
        width = matrix.shape[1]
        place, block = self._blocks(matrix.reshape(-1))
        _, which, count = np.unique(place // width * self._size + block, return_inverse=True, return_counts=True)
        inner = count[which] < width
        column, outer = self._blocks(shared)
        wanted = distinct(
            np.concatenate([column * self._size + outer, place[inner] % width * self._size + block[inner]])
        )
        if not wanted.size:
            return
        column, outer = wanted // self._size, wanted % self._size
        for row in (*matrix, shared):
            self._nest(row[column], outer, result)

    def _complete_product(self, labels: Ints, factors: Sequence[Ints], result: Completion) -> None:
        places = [self._blocks(factor) for factor in factors]
        places += [(np.arange(labels.size), self._cells[factor]) for factor in factors[1:]]
        wanted = distinct(np.concatenate([place * self._size + block for place, block in places]))
        self._nest(labels[wanted // self._size], wanted % self._size, result)
        place, block = self._blocks(labels)
        foreign = ~among(place * self._size + block, wanted)
        known = {where.tobytes(): one for one, where in _grouped(wanted % self._size, wanted // self._size)}
        for other, where in _grouped(block[foreign], place[foreign]):
            if where.tobytes() in known:
                result.ties.append((np.array([other]), np.array([known[where.tobytes()]])))
            elif other not in self._stuck:
                self._stuck.add(other)
                result.frozen.append(np.array([other]))

    def _nest(self, labels: Ints, blocks: Ints, result: Completion) -> None:
        """Nest cells in blocks that they are not in yet."""
        cells = self._cells[labels]
        place, block = self._blocks(labels)
        missing = ~among(np.arange(labels.size) * self._size + blocks, place * self._size + block)
        missing &= (cells != blocks) & (cells != 0) & (blocks != 0)
        if missing.any():
            result.nests.append((cells[missing], blocks[missing]))

    def _blocks(self, labels: Ints) -> Edges:
        """Positions in ``labels`` and the cells of all blocks around them."""
        return self._near.pairs(self._cells[labels])

    def around(self, labels: Ints) -> Ints:
        """Cells of all blocks that some of the labels are in ``(k,)``."""
        found = distinct(self._near.blocks[distinct(self._near.which[self._cells[labels]])])
        return found[found > 0]

    def surroundings(self, roots: Ints) -> Surroundings:
        """Free blocks around every label but the label's own root. Shapes: roots ``(labels,)``, 0 where frozen."""
        cell, block = self._near.pairs(np.arange(self._size))
        block = roots[block]
        free = (block != 0) & (block != roots[cell])
        keys = distinct(cell[free] * self._size + block[free])
        around = surroundings((keys // self._size, keys % self._size), self._size)
        return Surroundings(around.which[self._cells], around.blocks)

    def _matrix(self, row: Ints, column: Ints) -> csr_array:
        ones = np.ones(row.size, np.int64)
        found = csr_array((ones, (row, column)), shape=(self._size, self._size))
        found.sum_duplicates()
        found.data[:] = 1
        return found


def _grouped(keys: Ints, values: Ints) -> Iterator[tuple[int, Ints]]:
    """Ascending values of every key."""
    order = np.lexsort((values, keys))
    keys, values = keys[order], values[order]
    found, starts = np.unique(keys, return_index=True)
    yield from zip(found.tolist(), np.split(values, starts[1:]), strict=True) if found.size else ()
