"""Cells: what an element of a tensor goes with, which is one channel, or a channel and the blocks it is in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curlfx.coupling.resolve import Resolved
from curlfx.coupling.vectors import Ints
from curlfx.labels.compact import Bools


@dataclass(frozen=True, eq=False)
class Cells:
    """Numbers for labels: up to N a channel's own, above N that of several channels, any of which takes the cell along.

    Attributes:
        number: ``(labels,)`` cell of every raw label, 0 for what stays.
        own: ``(labels,)`` the channel of every raw label without the blocks it is in, 0 for none.
        channels: ``(cells + 1, depth)`` channel numbers of each cell, 0 for none.
    """

    number: Ints
    own: Ints
    channels: Ints

    def alive(self, channels: Bools) -> Bools:
        """Which cells stay ``(cells + 1,)`` when the channels ``(N + 1,)`` do; entry 0 is always true."""
        return np.asarray(channels[self.channels].all(axis=1))

    def levels(self, cells: Ints) -> list[Ints]:
        """Channel numbers of an array of cells, one array of its shape for every level of blocks."""
        found = [self.channels[cells, level] for level in range(self.channels.shape[1])]
        return [numbers for numbers in found if numbers.any()]


def number_cells(channel_of: Ints, resolved: Resolved) -> Cells:
    """One number for every set of channels that some label goes with: its own, and the blocks it is in.

    Shapes: channel_of ``(labels,)`` channel number of every root, 0 for none.
    """
    own = channel_of[resolved.roots]
    total = int(channel_of.max(initial=0))
    outer = resolved.outer
    nested = np.flatnonzero(outer.which)
    codes, place = np.unique(resolved.codes[nested], return_inverse=True)
    root, which = np.divmod(codes, len(outer.blocks))
    channels = np.column_stack([channel_of[root], channel_of[outer.blocks[which]]])
    together, cell = np.unique(-np.sort(-channels, axis=1), axis=0, return_inverse=True)
    shared = (together[:, 1:] != 0).any(axis=1)
    numbers = np.where(shared, total + np.cumsum(shared), together[:, 0])
    number = own.copy()
    number[nested] = numbers[cell.reshape(-1)][place]
    single = np.zeros((total + 1, together.shape[1]), np.int64)
    single[:, 0] = np.arange(total + 1)
    return Cells(number, own, np.concatenate([single, together[shared]]))
