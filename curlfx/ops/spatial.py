"""Rules of spatial ops: pooling, upsampling, pixel (un)shuffle."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor

from curlfx.labels.arrays import Arrays, along, flat, support
from curlfx.ops.call import OpCall
from curlfx.ops.meet import Operand, meet

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


def spatial_indexed(call: OpCall) -> Arrays:
    """Labels of max_unpool: values and the indices from pooling meet, then as :func:`spatial`.

    Shapes: input and indices ``(N, C, *)``, output ``(N, C, *)`` with other spatial sizes.
    """
    met = meet(call, [Operand(call.arrays(name), call.shape(name)) for name in ("self", "indices")])
    return call.keep_only(met, range(len(call.out_shape) - _space(call)), "pooled or resized along this axis")


def sampled(call: OpCall) -> Arrays:
    """Labels of ``aten.grid_sampler``: channels pass; where to sample must stay.

    Shapes: input ``(N, C, *)``, grid ``(N, *out, 2 or 3)``, output ``(N, C, *out)``.
    """
    call.freeze(call.arrays("grid"), "says where to sample")
    return call.keep_only(call.arrays("input"), (0, 1), "sampled along this axis")


def im2col(call: OpCall) -> Arrays:
    """Labels of ``aten.im2col`` (``torch.nn.Unfold``): every channel becomes one per position of the window.

    Shapes: input ``(N, C, H, W)``, output ``(N, C·kh·kw, windows)``.
    """
    return _spread(call, len(call.shape("self")) - 3, prod(call.number("kernel_size")))


def col2im(call: OpCall) -> Arrays:
    """Labels of ``aten.col2im`` (``torch.nn.Fold``): the channels of one window live and die together.

    Shapes: input ``(N, C·kh·kw, windows)``, output ``(N, C, H, W)``.
    """
    return _gathered(call, len(call.shape("self")) - 2, prod(call.number("kernel_size")))


def pixel_shuffle(call: OpCall) -> Arrays:
    """Labels of ``aten.pixel_shuffle``: the r·r channels that form one output channel live and die together.

    Shapes: input ``(N, C·r·r, H, W)``, output ``(N, C, H·r, W·r)``.
    """
    return _gathered(call, len(call.shape("self")) - 3, int(call.number("upscale_factor")) ** 2)


def pixel_unshuffle(call: OpCall) -> Arrays:
    """Labels of ``aten.pixel_unshuffle``: every channel becomes r·r channels.

    Shapes: input ``(N, C, H·r, W·r)``, output ``(N, C·r·r, H, W)``.
    """
    return _spread(call, len(call.shape("self")) - 3, int(call.number("downscale_factor")) ** 2)


def _spread(call: OpCall, axis: int, size: int) -> Arrays:
    """Every channel along ``axis`` becomes ``size`` neighbours; axes before it pass, axes behind it stay."""
    arrays = call.keep_only(call.arrays("self"), range(axis + 1), "cut along this axis")
    return tuple(_relaid(call, array, axis, lambda labels: labels.repeat_interleave(size)) for array in arrays)


def _gathered(call: OpCall, axis: int, size: int) -> Arrays:
    """Every ``size`` neighbours along ``axis`` become one channel; axes before it pass, axes behind it stay."""

    def merged(labels: Tensor) -> Tensor:
        blocks = labels.reshape(-1, size)
        call.tie(blocks, blocks[:, :1])
        return blocks[:, 0]

    arrays = call.keep_only(call.arrays("self"), range(axis + 1), "put together along this axis")
    return tuple(_relaid(call, array, axis, merged) for array in arrays)


def _relaid(call: OpCall, array: Tensor, axis: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """An array of the input laid out for the result, changed where it runs along ``axis``."""
    place = support(array)[-1]
    labels = flat(call.project(array, (place,)))
    return along(change(labels) if place == axis else labels, len(call.out_shape), place)
