"""Rules of spatial ops: pooling, upsampling, pixel (un)shuffle."""

from __future__ import annotations

from torch import Tensor

from curlfx.labels.arrays import Arrays, along, flat, support
from curlfx.ops.call import OpCall

_RANK = {"1d": 1, "2d": 2, "3d": 3}


def _space(call: OpCall) -> int:
    """Number of spatial axes, read from the op's name (``max_pool2d`` has 2)."""
    name = str(call.node.target)
    return next((rank for suffix, rank in _RANK.items() if suffix in name), 2)


def spatial(call: OpCall) -> Arrays:
    """Labels of pooling and interpolation: channel axes pass, labels along space freeze.

    Shapes: input ``(N, C, *)``, output ``(N, C, *)`` with other spatial sizes.
    """
    source = call.tensors()[0]
    ndim = len(call.shape(source))
    return call.keep_only(call.arrays(source), range(ndim - _space(call)), "pooled or resized along this axis")


def spatial_pair(call: OpCall) -> list[Arrays]:
    """As :func:`spatial`, for pooling that also returns indices."""
    arrays = spatial(call)
    return [arrays for _ in call.node.meta["val"]]


def pixel_shuffle(call: OpCall) -> Arrays:
    """Labels of ``aten.pixel_shuffle``: the r·r channels that form one output channel live and die together.

    Shapes: input ``(N, C·r·r, H, W)``, output ``(N, C, H·r, W·r)``.
    """
    return _blocks(call, int(call.number("upscale_factor")) ** 2, shrink=True)


def pixel_unshuffle(call: OpCall) -> Arrays:
    """Labels of ``aten.pixel_unshuffle``: every channel becomes r·r channels.

    Shapes: input ``(N, C, H·r, W·r)``, output ``(N, C·r·r, H, W)``.
    """
    return _blocks(call, int(call.number("downscale_factor")) ** 2, shrink=False)


def _blocks(call: OpCall, size: int, *, shrink: bool) -> Arrays:
    axis = len(call.shape("self")) - 3
    result: list[Tensor] = []
    for array in call.keep_only(call.arrays("self"), range(axis + 1), "shuffled along this axis"):
        if support(array)[-1] != axis:
            result.append(array)
            continue
        labels = flat(call.project(array, (axis,)))
        if shrink:
            blocks = labels.reshape(-1, size)
            call.tie(blocks, blocks[:, :1])
            labels = blocks[:, 0]
        else:
            labels = labels.repeat_interleave(size)
        result.append(along(labels, len(call.out_shape), axis))
    return tuple(result)
