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
    """Which positions of an axis stay, per position of the axes outside it.

    Args:
        shape: Shape of the tensor.
        arrays: Its channel numbers, broadcastable to ``shape``.
        alive: ``(N + 1,)`` which channels stay.
        axis: The axis; only arrays whose innermost varying axis it is decide about it.

    Returns:
        Bool array with as many axes as ``shape``, size 1 where it does not vary and ``shape[axis]`` at ``axis``.
    """
    kept = np.ones([1 if other != axis else size for other, size in enumerate(shape)], dtype=bool)
    for array in arrays:
        varying = [other for other, size in enumerate(array.shape) if size > 1]
        if varying and varying[-1] == axis:
            kept = kept & alive[array]
    return kept


def kept_shape(shape: Sequence[int], arrays: Sequence[Ints], alive: Bools) -> tuple[int, ...]:
    """Shape of the tensor after slimming.

    Raises: InvariantError when blocks would keep different counts, or nothing would remain (the coupling should have
        prevented both).
    """
    result = []
    for axis, size in enumerate(shape):
        kept = kept_along(shape, arrays, alive, axis)
        counts = kept.sum(axis=axis)
        if (counts != counts.flat[0]).any():
            raise InvariantError(
                f"axis {axis} of a tensor of shape {tuple(shape)} would keep between {counts.min()} and {counts.max()} "
                "channels per block; a bug of curlfx, please report it with the network"
            )
        if size and not counts.flat[0]:
            raise InvariantError(
                f"nothing would remain of axis {axis} of a tensor of shape {tuple(shape)}; "
                "a bug of curlfx, please report it with the network"
            )
        result.append(int(counts.flat[0]) if size > 1 else size)
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
                positions = np.flatnonzero(kept_along(tensor.shape, arrays, alive, axis))
                tensor = tensor.index_select(axis, torch.from_numpy(positions).to(tensor.device))
        return tensor
    mask = np.ones([1] * tensor.ndim, dtype=bool)
    for array in arrays:
        mask = mask & alive[array]
    full = torch.from_numpy(np.broadcast_to(mask, tuple(tensor.shape)).copy()).to(tensor.device)
    return tensor[full].reshape(shape)
