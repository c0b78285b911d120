"""What remains of a tensor when channels go: its new shape, and its elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curlfx.errors import InvariantError

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def kept_along(shape: Sequence[int], arrays: Sequence[Ints], alive: Bools, axis: int) -> Bools:
    """Which positions of an axis stay, one row for every position of the axes outside it that is left.

    Args:
        shape: Shape of the tensor.
        arrays: Its cell numbers, broadcastable to ``shape``.
        alive: ``(cells + 1,)`` which cells stay.
        axis: The axis; only arrays whose innermost varying axis it is decide about it. Arrays that end further out
            decide which blocks there are.

    Returns:
        Bool matrix ``(rows, shape[axis])``; no rows where no block is left.
    """
    deciding = [array for array in arrays if innermost(array) == axis]
    crossed = {other for array in deciding for other in range(axis) if array.shape[other] > 1}
    kept = np.ones([1] * axis + [shape[axis]], dtype=bool)
    for array in deciding:
        kept = kept & alive[array].reshape(array.shape[: axis + 1])
    blocks = np.ones([1] * axis, dtype=bool)
    for array in arrays:
        if innermost(array) < axis and any(array.shape[other] > 1 for other in crossed):
            blocks = blocks & alive[array].reshape(array.shape[:axis])
    together = np.broadcast_shapes(kept.shape[:-1], blocks.shape)
    return np.asarray(np.broadcast_to(kept, (*together, shape[axis]))[np.broadcast_to(blocks, together)])


def innermost(array: Ints) -> int:
    """The innermost axis along which an array varies, -1 for none."""
    return max((axis for axis, size in enumerate(array.shape) if size > 1), default=-1)


def kept_shape(shape: Sequence[int], arrays: Sequence[Ints], alive: Bools) -> tuple[int, ...]:
    """Shape of the tensor after slimming.

    Raises: InvariantError when blocks would keep different counts, or nothing would remain (the coupling should have
        prevented both).
    """
    result = []
    ends = {innermost(array) for array in arrays}
    for axis, size in enumerate(shape):
        if axis not in ends:
            result.append(size)
            continue
        counts = kept_along(shape, arrays, alive, axis).sum(axis=1)
        if not counts.size or (size and not counts[0]):
            raise InvariantError(
                f"nothing would remain of axis {axis} of a tensor of shape {tuple(shape)}; "
                "a bug of curlfx, please report it with the network"
            )
        if (counts != counts[0]).any():
            raise InvariantError(
                f"axis {axis} of a tensor of shape {tuple(shape)} would keep between {counts.min()} and {counts.max()} "
                "channels per block; a bug of curlfx, please report it with the network"
            )
        result.append(int(counts[0]))
    return tuple(result)


def compact(tensor: Tensor, arrays: Sequence[Ints], alive: Bools) -> Tensor:
    """The elements that stay, as a new tensor; the tensor itself where all stay.

    Shapes: tensor ``(n0, …)``, arrays broadcastable to it; result :func:`kept_shape`, elements in row-major order.
    """
    shape = kept_shape(tensor.shape, arrays, alive)
    if shape == tuple(tensor.shape):
        return tensor
    if all(sum(size > 1 for size in array.shape) <= 1 for array in arrays):
        for axis, size in enumerate(shape):
            if size != tensor.shape[axis]:
                positions = np.flatnonzero(kept_along(tensor.shape, arrays, alive, axis)[0])
                tensor = tensor.index_select(axis, torch.from_numpy(positions).to(tensor.device))
        return tensor
    mask = np.ones([1] * tensor.ndim, dtype=bool)
    for array in arrays:
        mask = mask & alive[array]
    full = torch.from_numpy(np.broadcast_to(mask, tuple(tensor.shape)).copy()).to(tensor.device)
    return tensor[full].reshape(shape)
