"""Rules of Fourier transforms and of complex numbers."""

from __future__ import annotations

from collections.abc import Sequence

from curlfx.labels.arrays import Arrays, support
from curlfx.ops.call import OpCall

_MIXED = "a Fourier transform runs over these channels"
_PAIRS = "real and imaginary parts"


def transformed(call: OpCall) -> Arrays:
    """Labels of ``aten.fft_*``: channels along the transformed axes stay, the others pass.

    Shapes: input ``(..., n, ...)``, output ``(..., m, ...)`` along the transformed axes.
    """
    ndim = len(call.shape("self"))
    axes = {axis % ndim for axis in _axes(call, ndim)}
    return call.keep_only(call.arrays("self"), [axis for axis in range(ndim) if axis not in axes], _MIXED)


def _axes(call: OpCall, ndim: int) -> Sequence[int]:
    """Axes by the op's own default: the last for one dimension, the last two for two, else all or as many as sizes."""
    written = call.number("dim")
    if isinstance(written, int):
        return [written]
    if written is not None:
        return [int(axis) for axis in written]
    sizes = call.number("s")
    return range(ndim - len(sizes), ndim) if sizes else range(ndim)


def as_pairs(call: OpCall) -> Arrays:
    """Labels of ``aten.view_as_real``: a new last axis without labels. Shapes: ``(...)``, output ``(..., 2)``."""
    return tuple(array.unsqueeze(-1) for array in call.arrays("self"))


def from_pairs(call: OpCall) -> Arrays:
    """Labels of ``aten.view_as_complex``: the last axis goes. Shapes: ``(..., 2)``, output ``(...)``."""
    last = len(call.shape("self")) - 1
    passing: list[int] = list(range(last))
    call.freeze([array for array in call.arrays("self") if support(array) == (last,)], _PAIRS)
    varying = [array for array in call.arrays("self") if support(array) != (last,)]
    arrays = call.keep_only(tuple(varying), passing, _PAIRS)
    return tuple(array.reshape(array.shape[:-1]) for array in arrays)
