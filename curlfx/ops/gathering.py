"""Rules of ops that read, write or sort by computed positions: gather, scatter, top-k, sort, searching."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from curlfx.labels.arrays import Arrays, support
from curlfx.ops.call import OpCall
from curlfx.ops.meet import Operand, meet
from curlfx.ops.reduction import along_axis, reduced

_PICKED = "picked by a computed index along this axis"
_WRITTEN = "written at computed positions along this axis"


def gathered(call: OpCall) -> Arrays:
    """Labels of ``aten.gather`` and ``take_along_dim``: along ``dim`` channels stay, along other axes the index meets.

    Shapes: self ``(..., n, ...)``, index and output ``(..., m, ...)`` along ``dim``.
    """
    if call.number("dim") is None:
        call.freeze(_everything(call), "picked by a computed index")
        return ()
    names = ("self", "index" if call.has("index") else "indices")
    return _aligned(call, names, _PICKED)


def scattered(call: OpCall) -> Arrays:
    """Labels of ``aten.scatter``, ``scatter_add``, ``scatter_reduce``: along ``dim`` channels stay, elsewhere all meet.

    Shapes: self and output ``(..., n, ...)``, index and src ``(..., m, ...)`` along ``dim``.
    """
    return _aligned(call, [name for name in ("self", "index", "src") if _is_tensor(call, name)], _WRITTEN)


def added_by_index(call: OpCall) -> Arrays:
    """Labels of ``aten.index_add``, ``index_copy``, ``index_fill``: along ``dim`` channels stay, elsewhere both meet.

    Shapes: self and output ``(..., n, ...)``, index ``(m,)``, source ``(..., m, ...)`` along ``dim``.
    """
    call.freeze(call.arrays("index"), "used as an index")
    return _aligned(call, [name for name in ("self", "source") if _is_tensor(call, name)], _WRITTEN)


def written(call: OpCall) -> Arrays:
    """Labels of ``aten.slice_scatter``, ``select_scatter``: along ``dim`` channels stay, elsewhere the two meet.

    Shapes: self and output ``(..., n, ...)``, src a part of it along ``dim`` (without that axis for select_scatter).
    """
    axis = call.axis("dim", "self")
    ndim = len(call.shape("self"))
    source, shape = call.arrays("src"), call.shape("src")
    if len(shape) < ndim:
        source, shape = tuple(a.unsqueeze(axis) for a in source), (*shape[:axis], 1, *shape[axis:])
    return _other_axes(call, [Operand(call.arrays("self"), call.shape("self")), Operand(source, shape)], axis, _WRITTEN)


def ranked(call: OpCall) -> list[Arrays]:
    """Labels of ops that sort or scan along ``dim`` and give values and indices (top-k, sort, cummax …).

    Shapes: input ``(..., n, ...)``, outputs ``(..., m, ...)`` along ``dim``.
    """
    arrays = along_axis(call)
    return [arrays for _ in call.node.meta["val"]]


def chosen(call: OpCall) -> list[Arrays]:
    """Labels of ops that reduce along ``dim`` by rank and give several tensors (median, k-th value, aminmax …).

    Shapes: input any; outputs without ``dim`` (size 1 there with ``keepdim``).
    """
    arrays = reduced(call)
    return [arrays for _ in call.node.meta["val"]]


def searched(call: OpCall) -> Arrays:
    """Labels of ``aten.bucketize`` and ``searchsorted`` among one sorted vector: values pass one by one.

    Shapes: sorted vector ``(n,)``, values and output any.
    """
    bounds = "boundaries" if call.has("boundaries") else "sorted_sequence"
    call.freeze(call.arrays(bounds), "searched by value")
    if not _is_tensor(call, "self"):
        return ()
    if len(call.shape(bounds)) > 1:
        call.freeze(call.arrays("self"), "searched in rows of their own")
        return ()
    return call.arrays("self")


def differences(call: OpCall) -> Arrays:
    """Labels of ``aten.diff``: channels along ``dim`` stay, the others pass."""
    if len(call.tensors()) > 1:
        call.freeze(_everything(call), "a difference with something put in front or behind")
        return ()
    return along_axis(call)


def triangular(call: OpCall) -> Arrays:
    """Labels of ``aten.tril`` and ``triu``: which elements are left depends on the position in the last two axes."""
    ndim = len(call.shape("self"))
    return call.keep_only(call.arrays("self"), range(ndim - 2), "a triangle of the matrix, by position")


def diagonal(call: OpCall) -> Arrays:
    """Labels of ``aten.diagonal``: channels along the two axes stay, the others pass.

    Shapes: input any, output without the two axes, with the diagonal at the end.
    """
    axes = {call.axis("dim1", "self", 0), call.axis("dim2", "self", 1)}
    others = [axis for axis in range(len(call.shape("self"))) if axis not in axes]
    arrays = call.keep_only(call.arrays("self"), others, "a diagonal along this axis")
    return tuple(array.reshape([array.shape[axis] for axis in others] + [1]) for array in arrays)


def one_hot(call: OpCall) -> Arrays:
    """Labels of ``aten.one_hot``: the positions that count pass, the new axis carries none.

    Shapes: input any, output ``(..., classes)``.
    """
    return tuple(array.unsqueeze(-1) for array in call.arrays("self"))


def _aligned(call: OpCall, names: Sequence[str], reason: str) -> Arrays:
    """Tensors that meet at every axis but ``dim``; where one is shorter elsewhere, the others' labels stay."""
    operands = [Operand(call.arrays(name), call.shape(name)) for name in names]
    return _other_axes(call, operands, call.axis("dim", "self"), reason)


def _other_axes(call: OpCall, operands: Sequence[Operand], axis: int, reason: str) -> Arrays:
    ndim = len(operands[0].shape)
    sizes = [{operand.shape[other] for operand in operands} for other in range(ndim)]
    even = [other for other in range(ndim) if other != axis and len(sizes[other] - {1}) <= 1]
    kept = [
        Operand(
            call.keep_only(operand.arrays, [other for other in range(ndim) if other != axis], reason), operand.shape
        )
        for operand in operands
    ]
    uneven = [array for operand in kept for array in operand.arrays if not set(support(array)) <= set(even)]
    call.freeze(uneven, "only part of these channels is picked or written")
    kept = [Operand(tuple(a for a in o.arrays if set(support(a)) <= set(even)), o.shape) for o in kept]
    return meet(call, kept, ignore=axis)


def _is_tensor(call: OpCall, name: str) -> bool:
    node = call.arg(name)
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _everything(call: OpCall) -> list[torch.Tensor]:
    return [array for tensor in call.tensors() for array in call.arrays(tensor)]
