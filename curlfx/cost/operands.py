"""The labels of what a contraction reads, laid on the axes of its box."""

from __future__ import annotations

import numpy as np

from curlfx.cost.contraction import Contraction, Operand
from curlfx.cost.counting import Box, Labels
from curlfx.coupling import Coupling


def box_of(contraction: Contraction, coupling: Coupling) -> Box:
    """The box of a contraction with the labels of everything that it reads or writes."""
    arrays: list[Labels] = []
    for operand in contraction.operands:
        for array in coupling.labels(operand.node.name):
            laid = _laid(np.asarray(array, np.int64), operand, contraction.extents)
            if laid is not None:
                arrays.append(laid)
    return Box(contraction.extents, tuple(arrays), contraction.blocks, contraction.channels)


def _laid(array: Labels, operand: Operand, extents: tuple[int, ...]) -> Labels | None:
    """A label array of an operand on the axes of the box; None when it varies where the box has no axis.

    Shapes: array as broadcast to the operand; result one axis per axis of the box, of size 1 or full.
    """
    order: list[int] = []
    sizes: list[int] = []
    for size, axes in zip(array.shape, operand.axes, strict=True):
        if size > 1 and not axes:
            return None
        order.extend(axes)
        sizes.extend(extents[axis] if size > 1 else 1 for axis in axes)
    if len(set(order)) < len(order):  # a repeated einsum index reads a diagonal
        return None
    laid = array.reshape(sizes).transpose(np.argsort(order))
    full = [1] * len(extents)
    for axis, size in zip(sorted(order), laid.shape, strict=True):
        full[axis] = size
    return laid.reshape(full)
