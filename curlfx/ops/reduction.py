"""Rules of reductions: sums over channels are contractions; what counts or compares channels freezes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from curlfx.labels.arrays import Arrays, support
from curlfx.ops.call import OpCall
from curlfx.ops.contract import WEIGHTS_SUMMED


def _axes(call: OpCall) -> tuple[int, ...]:
    ndim = len(call.shape("self"))
    found = call.number("dim")
    if found is None or found == []:
        return tuple(range(ndim))
    axes = found if isinstance(found, Sequence) else [found]
    return tuple(int(axis) % ndim for axis in axes)


def _without(call: OpCall, arrays: Sequence[Tensor], axes: Sequence[int]) -> Arrays:
    """Arrays that do not vary along the reduced axes, laid out for the result."""
    if bool(call.number("keepdim", False)):
        return tuple(arrays)
    gone = set(axes)
    return tuple(array.reshape([s for a, s in enumerate(array.shape) if a not in gone]) for array in arrays)


def summed(call: OpCall) -> Arrays:
    """Labels of ``sum`` and vector norms: a removed channel adds nothing, so labels on summed axes end here.

    A sum over weights alone (weight normalisation) would change for the channels that stay: it freezes them.

    Shapes: input any; output without ``dim`` (size 1 there with ``keepdim``).
    """
    axes = _axes(call)
    passing: list[Tensor] = []
    for array in call.arrays("self"):
        outer = [axis for axis in support(array)[:-1] if axis in axes]
        if outer:
            array = call.project(array, tuple(a for a in support(array) if a not in outer))
        if support(array)[-1] in axes and call.fixed:
            call.freeze(array, WEIGHTS_SUMMED)
        elif support(array)[-1] in axes:
            call.read("self")
        else:
            passing.append(array)
    return _without(call, passing, axes)


def norm(call: OpCall) -> Arrays:
    """Labels of vector norms: as a sum, for orders above 0; the norm is taken over the kept channels.

    Matrix norms other than Frobenius' are no sums.
    """
    order = call.number("ord")
    matrix = "linalg_norm" in str(call.node.target) and len(_axes(call)) > 1
    if order is None or (not matrix and isinstance(order, (int, float)) and order > 0):
        return summed(call)
    return reduced(call)


def reduced(call: OpCall) -> Arrays:
    """Labels of mean, max, var, argmax …: channels along a reduced axis must stay; the others pass.

    Shapes: input any; output without ``dim`` (size 1 there with ``keepdim``).
    """
    axes = _axes(call)
    others = [axis for axis in range(len(call.shape("self"))) if axis not in axes]
    reason = f"{call.node.target!s} runs over these channels"
    arrays = call.keep_only(call.arrays("self"), others, reason)
    return _without(call, arrays, axes)


def reduced_pair(call: OpCall) -> list[Arrays]:
    """As :func:`reduced`, for ops that return values and indices."""
    arrays = reduced(call)
    return [arrays for _ in call.node.meta["val"]]


def along_axis(call: OpCall) -> Arrays:
    """Labels of softmax, cumsum, normalising scans: the shape stays, channels along ``dim`` must stay."""
    axis = call.axis("dim", "self", -1)
    others = [other for other in range(len(call.shape("self"))) if other != axis]
    return call.keep_only(call.arrays("self"), others, f"{call.node.target!s} runs over these channels")
