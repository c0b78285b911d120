"""Rules of reductions: sums over channels are contractions, statistics run over the kept ones, the rest freezes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from curlfx.labels.arrays import Arrays, rows, support
from curlfx.ops.call import OpCall, is_getitem
from curlfx.ops.contract import WEIGHTS_SUMMED

WEIGHTS_AVERAGED = "a statistic of weights alone, which would change what stays"


def reduced_axes(ndim: int, dim: Any) -> tuple[int, ...]:
    """The axes that a reduction's ``dim`` means: one, several, or all of them where it is None or empty."""
    if dim is None or dim == []:
        return tuple(range(ndim))
    axes = dim if isinstance(dim, Sequence) else [dim]
    return tuple(int(axis) % max(ndim, 1) for axis in axes)


def _axes(call: OpCall) -> tuple[int, ...]:
    return reduced_axes(len(call.shape("self")), call.number("dim"))


def _without(call: OpCall, arrays: Sequence[Tensor], axes: Sequence[int]) -> Arrays:
    """Arrays that do not vary along the reduced axes, laid out for the result."""
    if bool(call.number("keepdim", False)):
        return tuple(arrays)
    gone = set(axes)
    return tuple(array.reshape([s for a, s in enumerate(array.shape) if a not in gone]) for array in arrays)


def _parted(call: OpCall, axes: Sequence[int]) -> tuple[Arrays, Arrays]:
    """The arrays whose channels lie along the reduced axes, and the others as they vary along the axes that stay."""
    ending: list[Tensor] = []
    passing: list[Tensor] = []
    for array in call.arrays("self"):
        varying = support(array)
        if varying[-1] in axes:
            ending.append(array)
        else:
            passing.append(call.project(array, tuple(axis for axis in varying if axis not in axes)))
    return tuple(ending), tuple(passing)


def summed(call: OpCall) -> Arrays:
    """Labels of ``sum`` and vector norms: a removed channel adds nothing, so labels on summed axes end here.

    A sum over weights alone (weight normalisation) would change for the channels that stay: it freezes them.

    Shapes: input any; output without ``dim`` (size 1 there with ``keepdim``).
    """
    axes = _axes(call)
    ending, passing = _parted(call, axes)
    if call.fixed:
        call.freeze(ending, WEIGHTS_SUMMED)
    elif ending:
        call.read("self", axes)
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


def statistic(call: OpCall) -> Arrays:
    """Labels of mean, var, std, amax, amin …: labels on reduced axes end here; the statistic of the kept channels is
    another one (reported). A variance with Bessel's correction needs two channels at least, as in any network.

    A statistic of weights alone (weight standardisation) freezes them.

    Shapes: input any; output without ``dim`` (size 1 there with ``keepdim``).
    """
    axes = _axes(call)
    ending, passing = _parted(call, axes)
    if call.fixed:
        call.freeze(ending, WEIGHTS_AVERAGED)
    else:
        for array in ending:  # one statistic per block, where blocks are not averaged over
            own = rows(array) if not set(support(array)[:-1]) & set(axes) else array.reshape(1, -1)
            call.store.statistics.extend(own)
    return _without(call, passing, axes)


def statistics_pair(call: OpCall) -> list[Arrays]:
    """As :func:`statistic`, for ops that return two of them."""
    arrays = statistic(call)
    return [arrays for _ in call.node.meta["val"]]


def extremum(call: OpCall) -> list[Arrays]:
    """Labels of ``max.dim``, ``min.dim``: the values as a :func:`statistic`; channels whose position is read stay.

    Shapes: input any; both outputs without ``dim`` (size 1 there with ``keepdim``).
    """
    if all(is_getitem(user) and user.args[1] == 0 for user in call.node.users):
        return statistics_pair(call)
    arrays = reduced(call)
    return [arrays for _ in call.node.meta["val"]]


def reduced(call: OpCall) -> Arrays:
    """Labels of prod, argmax, logsumexp …: channels along a reduced axis must stay; the others pass.

    Shapes: input any; output without ``dim`` (size 1 there with ``keepdim``).
    """
    axes = _axes(call)
    ending, passing = _parted(call, axes)
    call.freeze(ending, f"{call.node.target!s} runs over these channels")
    return _without(call, passing, axes)


def along_axis(call: OpCall) -> Arrays:
    """Labels of softmax, cumsum, normalising scans: the shape stays, channels along ``dim`` must stay."""
    axis = call.axis("dim", "self", -1)
    others = [other for other in range(len(call.shape("self"))) if other != axis]
    return call.keep_only(call.arrays("self"), others, f"{call.node.target!s} runs over these channels")
