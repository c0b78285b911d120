"""Label arrays: small integer tensors, broadcastable to the shape of the tensor they describe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Arrays = tuple[Tensor, ...]
Support = tuple[int, ...]


def support(array: Tensor) -> Support:
    """Axes along which the labels vary (size above 1), ascending."""
    return tuple(axis for axis, size in enumerate(array.shape) if size > 1)


def compress(array: Tensor) -> Tensor:
    """Shrink every axis along which the labels do not vary to size 1.

    Shapes: array ``(n0, …, nk)``; result the same number of axes, each of size 1 or ``ni``.
    """
    for axis, (size, stride) in enumerate(zip(array.shape, array.stride(), strict=True)):
        if size > 1 and stride == 0:
            array = array.narrow(axis, 0, 1)
    for axis in support(array):
        first = array.narrow(axis, 0, 1)
        if bool((array == first).all()):
            array = first
    return array


def along(labels: Tensor, ndim: int, axis: int) -> Tensor:
    """Lay a vector of labels along one axis of an ``ndim``-axis tensor.

    Shapes: labels ``(n,)``; result ``(1, …, n, …, 1)`` with ``n`` at ``axis``.
    """
    shape = [1] * ndim
    shape[axis] = labels.numel()
    return labels.reshape(shape)


def flat(array: Tensor) -> Tensor:
    """The labels of an array with at most one varying axis, as a vector ``(n,)``."""
    return array.reshape(-1)


def align(array: Tensor, ndim: int) -> Tensor:
    """Prepend axes of size 1 until the array has ``ndim`` axes (numpy broadcasting)."""
    missing = ndim - array.ndim
    return array.reshape((1,) * missing + tuple(array.shape)) if missing else array


def first_along(array: Tensor, axes: Sequence[int]) -> Tensor:
    """The slice at position 0 of every axis in ``axes`` (kept as size 1)."""
    for axis in axes:
        array = array.narrow(axis, 0, 1)
    return array


def rows(array: Tensor) -> Tensor:
    """An array as a matrix: one row per position of the leading varying axes, the last varying axis as columns.

    Shapes: array with ``k >= 1`` varying axes of sizes ``s1 … sk``; result ``(s1 · … · s(k-1), sk)``.
    """
    sizes = [array.shape[axis] for axis in support(array)]
    return array.reshape(-1, sizes[-1]) if sizes else array.reshape(1, 1)


def empty_like_axis(size: int, ndim: int, axis: int) -> Tensor:
    """An all-frozen array (label 0) that varies in shape along ``axis`` only."""
    return along(torch.zeros(size, dtype=torch.int64), ndim, axis)


def different_rows(matrix: Tensor) -> tuple[int, Tensor]:
    """How many different rows ``(rows, width)`` has, and which of them, in order, each one is ``(rows,)``."""
    values, which = torch.unique(matrix[:, 0], return_inverse=True)
    first = torch.zeros(len(values), dtype=torch.int64)
    first[which] = torch.arange(len(matrix))
    if len(values) < len(matrix) and not torch.equal(matrix, matrix[first[which]]):
        values, which = torch.unique(matrix, dim=0, return_inverse=True)
    return len(values), which


def ascending(values: Tensor) -> bool:
    """Whether every element of a vector is larger than the one before it, so that all are different."""
    return bool((values[1:] > values[:-1]).all())


def different_columns(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A place of each different column of ``matrix`` ``(rows, width >= 1)``, and which of these each one is.

    The different ones come in the order of their first elements, then of their second ones, and so on.

    Args:
        matrix: Numbers from 0 to ``size - 1``.
        size: ``width * size`` must fit 63 bits.
    """
    which = torch.unique(matrix[0], return_inverse=True)[1]
    for row in matrix[1:]:
        which = torch.unique(which * size + row, return_inverse=True)[1]
    place = torch.zeros(int(which.max()) + 1, dtype=torch.int64)
    place[which] = torch.arange(matrix.shape[1])
    return place, which
