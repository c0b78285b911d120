"""Where channels occur: arrays of labels, once for each different set of channels in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curlfx.coupling.resolve import Resolved
from curlfx.coupling.vectors import Ints, distinct


class Places:
    """Arrays of labels as sets of channels; arrays that hold the same channels in the same blocks are one set.

    Args:
        arrays: Labels, of any shapes.
        resolved: Roots and blocks.

    Attributes:
        of: Set of every array.
        first: For every set the first array that holds it.
        held: Vectors ``(n,)``: sets and the codes (:attr:`Resolved.codes`) in them, ascending, each pair once.
        members: Vectors ``(n,)``: sets and the free roots that decide about them, those of blocks included, likewise.
    """

    def __init__(self, arrays: Sequence[Ints], resolved: Resolved) -> None:
        known: dict[bytes, int] = {}
        self.of: list[int] = []
        self.first: list[int] = []
        sets: list[Ints] = []
        for index, array in enumerate(arrays):
            codes = distinct(resolved.codes[array])
            found = known.setdefault(codes.tobytes(), len(sets))
            if found == len(sets):
                sets.append(codes)
                self.first.append(index)
            self.of.append(found)
        sizes = [codes.size for codes in sets]
        self.held = np.repeat(np.arange(len(sets)), sizes), np.concatenate([np.zeros(0, np.int64), *sets])
        self.members = self._members(resolved)

    def _members(self, resolved: Resolved) -> tuple[Ints, Ints]:
        size, outer = resolved.roots.size, resolved.outer
        number, codes = self.held
        root, which = np.divmod(codes, len(outer.blocks))
        around = distinct(number * len(outer.blocks) + which)
        row, block = np.nonzero(outer.blocks[around % len(outer.blocks)])
        blocks = outer.blocks[around[row] % len(outer.blocks), block]
        own = root > 0
        found = distinct(
            np.concatenate([number[own] * size + root[own], around[row] // len(outer.blocks) * size + blocks])
        )
        return found // size, found % size

    def split(self, values: Ints) -> list[Ints]:
        """Different values of the members of each set; shapes: values ``(labels,)`` by root."""
        number, member = self.members
        span = int(values.max(initial=0)) + 1
        found = distinct(number * span + values[member])
        return np.split(found % span, np.searchsorted(found, np.arange(1, len(self.first)) * span))
