"""How everything that a network computes with shrinks when channels go: its activations and contractions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from curlfx.cost.contraction import contractions
from curlfx.cost.counting import Alive, Box, Floats, Labels, Tally
from curlfx.cost.operands import box_of
from curlfx.coupling import Coupling
from curlfx.graph import TracedModel


class Quantities:
    """Sizes as shares of the dense network's, for any keep set.

    A quantity is the number of elements of an activation, or of multiply-adds of a contraction. The last
    one is constant, for what does not depend on the channels.

    Args:
        boxes: What is counted.
        total: Number of channels ``N``.
        coupling: Whose channels they are.
        block: Size to which padded axes are rounded up.
    """

    def __init__(self, boxes: Sequence[Box], coupling: Coupling, *, block: int) -> None:
        self.boxes, self.block = tuple(boxes), block
        self._coupling = coupling
        tally = Tally(len(coupling.cells.channels) - 1, block)
        for box in self.boxes:
            tally.add(box)
        self._prices = tally.finish()
        counts = self._counts(np.ones(coupling.total + 1, bool))
        self._dense = self._prices.points(counts), self._prices.padded_points(counts)

    @classmethod
    def of(cls, traced: TracedModel, coupling: Coupling, *, block: int = 16) -> Quantities:
        """All quantities of a network that depend on its channels, each once."""
        found: dict[tuple[object, ...], Box] = {}
        for box in _boxes(traced, coupling):
            arrays = tuple(array for array in box.arrays if array.any())
            if arrays:
                key = (box.extents, box.blocks, box.channels, *((array.shape, array.tobytes()) for array in arrays))
                found.setdefault(key, Box(box.extents, arrays, box.blocks, box.channels))
        return cls([*found.values(), Box((1,), ())], coupling, block=block)

    def only(self, positions: Sequence[int]) -> Quantities:
        """These quantities alone, in that order."""
        return Quantities([self.boxes[position] for position in positions], self._coupling, block=self.block)

    def shares(self, alive: Alive) -> Floats:
        """What is left of each quantity, as it is and with channels rounded up: ``(Q, 2)``, 1 in the dense network."""
        counts = self._counts(alive)
        pairs = zip((self._prices.points(counts), self._prices.padded_points(counts)), self._dense, strict=True)
        return np.stack([left / np.maximum(dense, 1) for left, dense in pairs], axis=1)

    def _counts(self, alive: Alive) -> npt.NDArray[np.int64]:
        return self._prices.counts(self._coupling.cells.alive(alive))


def _boxes(traced: TracedModel, coupling: Coupling) -> list[Box]:
    """Of every contraction and of every activation."""
    boxes: list[Box] = []
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        boxes += [box_of(contraction, coupling) for contraction in contractions(node, coupling.rules)]
        if isinstance(value, Tensor) and node.op in ("call_function", "placeholder"):
            boxes.append(Box(tuple(value.shape), _full(coupling.labels(node.name), value.ndim)))
    return boxes


def _full(arrays: Sequence[Labels], ndim: int) -> tuple[Labels, ...]:
    """Label arrays with as many axes as their tensor."""
    return tuple(
        np.asarray(array, np.int64).reshape((1,) * (ndim - np.ndim(array)) + np.shape(array)) for array in arrays
    )
