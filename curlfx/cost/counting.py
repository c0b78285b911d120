"""How many points of a box are left when channels go: sums of products of counts over channels.

A box of integer axes carries label arrays; a point is left when every label at it is alive. Axes that no array joins
are independent, so the count is a product over *components* of joined axes; inside a component it is a sum over
*patterns* (positions of the axes that several arrays share) of products of plain counts. A count is one row of a sparse
matrix times the vector of living channels, so any keep set is priced by one sparse product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Alive = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """Integer axes with labels.

    Attributes:
        extents: Sizes of the axes.
        arrays: Label arrays, each with one axis per axis of the box, of size 1 or the full size.
        blocks: Axes whose positions are padded one by one.
        channels: Axes that are padded; None: those that carry labels.
    """

    extents: tuple[int, ...]
    arrays: tuple[Labels, ...]
    blocks: tuple[int, ...] = ()
    channels: tuple[int, ...] | None = None


class Tally:
    """Collects boxes, then prices them for any set of living channels.

    Args:
        total: Number of channels ``N``; labels are in ``[0, N]``, and 0 is always alive.
        block: Size to which padded axes are rounded up.
    """

    NARROW = 4  # onnxruntime reads fewer input channels than this unpadded (an image's three colours)

    def __init__(self, total: int, block: int) -> None:
        self._total, self._block = total, block
        self._rows: dict[bytes, int] = {}
        self._labels: list[Labels] = []
        self._factors: list[tuple[int, ...]] = []  # of each pattern: rows to multiply
        self._padded: list[tuple[bool, ...]] = []  # of each factor: whether it is rounded up
        self._times: list[int] = []  # of each pattern: how often it occurs
        self._components: list[tuple[int, bool]] = []  # first pattern; whether the sum is rounded up
        self._boxes: list[tuple[int, tuple[int, ...]]] = []  # constant, components
        self._one = self._row(np.zeros(1, np.int64))

    def add(self, box: Box, *, merge: bool = False) -> None:
        """Append a box. ``merge`` joins patterns where it can, for boxes whose padding is of no interest."""
        arrays = _distinct(box.arrays)
        covered = {axis for array in arrays for axis in _varying(array)}
        for axis in box.channels or ():
            if axis not in covered and box.extents[axis] > 1:
                shape = [1] * len(box.extents)
                shape[axis] = box.extents[axis]
                arrays.append(np.zeros(shape, np.int64))
        covered |= {axis for array in arrays for axis in _varying(array)}
        constant = math.prod(size for axis, size in enumerate(box.extents) if axis not in covered)
        components = tuple(self._component(part, box, merge=merge) for part in _joined(arrays))
        self._boxes.append((constant, components))

    def finish(self) -> Prices:
        """The collected boxes, ready to be priced."""
        widest = max((len(factors) for factors in self._factors), default=1)
        count = len(self._factors)
        factors = np.full((count, widest), self._one, np.int64)
        padded = np.zeros((count, widest), bool)
        for pattern, (rows, flags) in enumerate(zip(self._factors, self._padded, strict=True)):
            factors[pattern, : len(rows)] = rows
            padded[pattern, : len(rows)] = flags
        most = max((len(components) for _, components in self._boxes), default=0)
        members = np.full((len(self._boxes), most), len(self._components), np.int64)
        for position, (_, components) in enumerate(self._boxes):
            members[position, : len(components)] = components
        lengths = [len(labels) for labels in self._labels]
        row = np.repeat(np.arange(len(lengths)), lengths)
        column = np.concatenate(self._labels)
        shape = (len(lengths), self._total + 1)
        return Prices(
            matrix=sparse.coo_array((np.ones(len(row), np.int64), (row, column)), shape=shape).tocsr(),
            factors=factors,
            padded=padded,
            times=np.array(self._times, np.int64),
            starts=np.array([start for start, _ in self._components], np.int64),
            together=np.array([together for _, together in self._components], bool),
            members=members,
            constants=np.array([constant for constant, _ in self._boxes], np.int64),
            block=self._block,
        )

    def _row(self, labels: Labels) -> int:
        key = labels.tobytes()
        row = self._rows.setdefault(key, len(self._labels))
        if row == len(self._labels):
            self._labels.append(labels)
        return row

    def _component(self, arrays: Sequence[Labels], box: Box, *, merge: bool) -> int:
        """Append the patterns of arrays that share axes; returns the component's number."""
        axes = [_varying(array) for array in arrays]
        everywhere = [axis for own in axes for axis in set(own)]
        shared = tuple(sorted(axis for axis in set(everywhere) if everywhere.count(axis) > 1))
        split = tuple(sorted({*shared, *(axis for axis in everywhere if axis in box.blocks)}))
        tables = [_table(array, split) for array in arrays]
        free = [tuple(axis for axis in own if axis not in split) for own in axes]
        pads = [any(box.channels is None or axis in box.channels for axis in own) for own in free]
        together = not set(split) <= set(box.blocks) and any(
            box.channels is None or axis in box.channels for axis in everywhere
        )
        sizes = tuple(box.extents[axis] for axis in split)
        keys = np.stack([np.broadcast_to(table.ids, sizes).reshape(-1) for table in tables], axis=1)
        self._components.append((len(self._factors), together))
        if merge:
            self._merged(keys, tables)
        else:
            self._patterns(keys, tables, tuple(not together and pad for pad in pads))
        return len(self._components) - 1

    def _patterns(self, keys: Labels, tables: Sequence[_Table], pads: tuple[bool, ...]) -> None:
        rows = [[self._row(labels) for labels in table.rows] for table in tables]
        distinct, times = np.unique(keys, axis=0, return_counts=True)
        for key, often in zip(distinct.tolist(), times.tolist(), strict=True):
            self._append(tuple(own[index] for own, index in zip(rows, key, strict=True)), pads, often)

    def _merged(self, keys: Labels, tables: Sequence[_Table]) -> None:
        """Patterns that agree but for one single-label array become one: that array's labels are counted together."""
        alone = next((place for place, table in enumerate(tables) if len(table.rows[0]) == 1), None)
        if alone is None or len(tables) == 1:
            self._patterns(keys, tables, (False,) * len(tables))
            return
        others = [place for place in range(len(tables)) if place != alone]
        rows = {place: [self._row(labels) for labels in tables[place].rows] for place in others}
        labels = np.concatenate(tables[alone].rows)[keys[:, alone]]
        distinct, group = np.unique(keys[:, others], axis=0, return_inverse=True)
        order = np.argsort(group.reshape(-1), kind="stable")
        parts = np.split(labels[order], np.cumsum(np.bincount(group.reshape(-1)))[:-1])
        for key, part in zip(distinct.tolist(), parts, strict=True):
            factors = [rows[place][index] for place, index in zip(others, key, strict=True)]
            self._append((*factors, self._row(np.sort(part))), (False,) * (len(factors) + 1), 1)

    def _append(self, factors: tuple[int, ...], pads: tuple[bool, ...], times: int) -> None:
        self._factors.append(factors)
        self._padded.append(pads)
        self._times.append(times)


@dataclass(frozen=True)
class Prices:
    """Counts of all boxes as arrays; made by `Tally.finish`.

    Attributes:
        matrix: Sparse ``(rows, N + 1)``: how often each row counts each channel.
        factors: Rows to multiply, ``(patterns, F)``.
        padded: Which factors are rounded up, ``(patterns, F)``.
        times: How often each pattern occurs, ``(patterns,)``.
        starts: First pattern of each component, ``(components,)``.
        together: Components whose sum is rounded up, ``(components,)``.
        members: Components to multiply for each box, ``(boxes, K)``; the number of components stands for 1.
        constants: Constant factor of each box, ``(boxes,)``.
        block: Size to which padded counts are rounded up.
    """

    matrix: sparse.csr_array
    factors: npt.NDArray[np.int64]
    padded: npt.NDArray[np.bool_]
    times: Counts
    starts: npt.NDArray[np.int64]
    together: npt.NDArray[np.bool_]
    members: npt.NDArray[np.int64]
    constants: Counts
    block: int

    def counts(self, alive: Alive) -> Counts:
        """Counts of every row, ``(rows,)``."""
        result: Counts = self.matrix @ alive.astype(np.int64)
        return result

    def points(self, counts: Counts) -> Counts:
        """Points left in every box, ``(boxes,)``."""
        return self._combine(counts[self.factors], pad=False)

    def padded_points(self, counts: Counts) -> Counts:
        """Points of every box after rounding up, ``(boxes,)``."""
        factors = counts[self.factors]
        return self._combine(np.where(self.padded, self._round_up(factors), factors), pad=True)

    def _combine(self, factors: Counts, *, pad: bool) -> Counts:
        if not len(self.starts):
            return self.constants.copy()
        patterns = factors.prod(axis=1) * self.times
        components: Counts = np.add.reduceat(patterns, self.starts)
        if pad:
            components = np.where(self.together, self._round_up(components), components)
        ones = np.append(components, 1)
        result: Counts = self.constants * ones[self.members].prod(axis=1)
        return result

    def _round_up(self, counts: Counts) -> Counts:
        rounded = -(-counts // self.block) * self.block
        result: Counts = np.where(counts < Tally.NARROW, counts, rounded)
        return result


@dataclass(frozen=True)
class _Table:
    """A label array as rows: at each position of the split axes, the number of the row that is counted there."""

    ids: Labels
    rows: list[Labels]


def _table(array: Labels, split: tuple[int, ...]) -> _Table:
    lead = np.moveaxis(array, split, range(len(split)))
    positions = lead.shape[: len(split)]
    matrix = np.ascontiguousarray(lead).reshape(math.prod(positions), -1)
    seen: dict[bytes, int] = {}
    ids = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in matrix], np.int64)
    rows = [np.frombuffer(row, np.int64) for row in seen]
    return _Table(ids.reshape(positions), rows)


def _varying(array: Labels) -> tuple[int, ...]:
    return tuple(axis for axis, size in enumerate(array.shape) if size > 1)


def _distinct(arrays: Sequence[Labels]) -> list[Labels]:
    """Arrays shrunk to the axes along which they vary; no array twice, none that only says *frozen*."""
    found: dict[tuple[tuple[int, ...], bytes], Labels] = {}
    for array in arrays:
        for axis in _varying(array):
            first = array.take([0], axis)
            if (array == first).all():
                array = first
        if array.any():
            found.setdefault((array.shape, array.tobytes()), array)
    return list(found.values())


def _joined(arrays: Sequence[Labels]) -> list[list[Labels]]:
    """Arrays in classes: two that vary along a common axis are in the same one."""
    classes: list[tuple[set[int], list[Labels]]] = []
    for array in arrays:
        axes, members = set(_varying(array)), [array]
        apart = []
        for other_axes, others in classes:
            if axes & other_axes:
                axes |= other_axes
                members = others + members
            else:
                apart.append((other_axes, others))
        classes = [*apart, (axes, members)]
    return [members for _, members in classes]
