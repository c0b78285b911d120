"""Rules of ops that join, extend or make tensors: cat, stack, pad, zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.labels.arrays import Arrays, align, along, compress, empty_like_axis, flat, support
from curlfx.ops.call import OpCall
from curlfx.ops.meet import Operand, meet


def cat(call: OpCall) -> Arrays:
    """Labels of ``aten.cat``: joined along ``dim``, tied along every other axis; a part without labels stays.

    Shapes: tensors ``(..., n_i, ...)``, output ``(..., Σ n_i, ...)``.
    """
    return _cat(call, int(call.number("dim", 0)) % len(call.out_shape))


def hstack(call: OpCall) -> Arrays:
    """Labels of ``aten.hstack``: as cat along axis 1 (0 for vectors)."""
    return _cat(call, min(1, len(call.out_shape) - 1))


def vstack(call: OpCall) -> Arrays:
    """Labels of ``aten.vstack``: as cat along axis 0; vectors, which become rows, stay."""
    return _stacked(call, 0, 2)


def dstack(call: OpCall) -> Arrays:
    """Labels of ``aten.dstack``: as cat along axis 2; vectors and matrices, which get that axis first, stay."""
    return _stacked(call, 2, 3)


def column_stack(call: OpCall) -> Arrays:
    """Labels of ``aten.column_stack``: as cat along axis 1; vectors, which become columns, stay."""
    return _stacked(call, 1, 2)


def _stacked(call: OpCall, axis: int, least: int) -> Arrays:
    tensors: Sequence[Node] = call.arg("tensors")
    if any(len(call.shape(tensor)) < least for tensor in tensors):
        for tensor in tensors:
            call.freeze(call.arrays(tensor), f"stacked along an axis that not all tensors have ({call.node.target!s})")
        return ()
    return _cat(call, axis)


def broadcast(call: OpCall) -> list[Arrays]:
    """Labels of ``aten.broadcast_tensors``: each tensor keeps its own, laid out for the common shape."""
    ndim = len(call.out_shape)
    return [tuple(align(array, ndim) for array in call.arrays(tensor)) for tensor in call.tensors()]


def _cat(call: OpCall, axis: int) -> Arrays:
    tensors = [tensor for tensor in call.arg("tensors") if call.shape(tensor) != (0,)]
    across = meet(call, [Operand(call.arrays(t), call.shape(t)) for t in tensors], ignore=axis)
    pieces = [_ending_at(call, call.arrays(t), axis) for t in tensors]
    if not any(pieces):
        return across
    sizes = [call.shape(t)[axis] for t in tensors]
    return (*across, _joined(call, pieces, sizes, axis))


def stack(call: OpCall) -> Arrays:
    """Labels of ``aten.stack``: the tensors meet at every axis; the new axis carries no labels.

    Shapes: tensors ``(...)`` all alike, output ``(..., k, ...)`` with the new axis at ``dim``.
    """
    tensors: Sequence[Node] = call.arg("tensors")
    axis = int(call.number("dim", 0)) % len(call.out_shape)
    arrays = meet(call, [Operand(call.arrays(t), call.shape(t)) for t in tensors])
    return tuple(array.unsqueeze(axis) for array in arrays)


def pad(call: OpCall) -> Arrays:
    """Labels of constant padding: padded channels get free labels of their own; padding in space passes.

    Shapes: input ``(..., n, ...)``, output ``(..., before + n + after, ...)``; ``pad`` lists the last axis first.
    Raises: nothing; other padding modes and cropping along labelled channels freeze them.
    """
    source = call.tensors()[0]
    amounts = padding(call.number("pad"), len(call.shape(source)))
    constant = str(call.arg("mode", "constant")) == "constant"
    result: list[Tensor] = []
    for array in call.arrays(source):
        axes = [axis for axis in support(array) if amounts[axis] != (0, 0)]
        if any(not constant or min(amounts[axis]) < 0 for axis in axes) or axes[1:]:
            call.freeze(array, "padded along this axis in a way that is not followed")
        elif axes and axes[0] != support(array)[-1]:
            call.freeze(array, "blocks are padded with more blocks")
        elif axes:
            result.append(_padded(call, array, axes[0], *amounts[axes[0]]))
        else:
            result.append(array)
    return tuple(result)


def filled(call: OpCall) -> Arrays:
    """Labels of a tensor of one value (zeros, new_full, …): every axis of a fixed size gets free labels of its own.

    Shapes: output ``size``; axes whose size the graph computes (the batch) carry none.
    """
    fixed = [not isinstance(size, Node) for size in call.arg("size")]
    return tuple(
        along(call.store.fresh(size, call.node.name, axis, parameter=False), len(fixed), axis)
        for axis, size in enumerate(call.out_shape)
        if fixed[axis] and size > 1
    )


def padding(amounts: Sequence[int], ndim: int) -> list[tuple[int, int]]:
    """Padding per axis, first axis first, from the flat list that counts from the last axis."""
    pairs = [(int(amounts[i]), int(amounts[i + 1])) for i in range(0, len(amounts), 2)]
    return [(0, 0)] * (ndim - len(pairs)) + pairs[::-1]


def _padded(call: OpCall, array: Tensor, axis: int, before: int, after: int) -> Tensor:
    pieces = []
    for count in (before, after):
        shape = list(array.shape)
        shape[axis] = count
        size = int(torch.tensor(shape).prod())
        pieces.append(call.store.fresh(size, call.node.name, axis, parameter=False).reshape(shape))
    padded = torch.cat([pieces[0], array, pieces[1]], axis)
    outer = [other for other in call.arrays(call.tensors()[0]) if support(other) == support(array)[:-1]]
    call.balance(padded, outer[0] if outer else None)
    return padded


def _ending_at(call: OpCall, arrays: Arrays, axis: int) -> list[Tensor]:
    """Arrays that vary along ``axis``, made to have it as their innermost one."""
    result = []
    for array in arrays:
        if axis not in support(array):
            continue
        if support(array)[-1] != axis:
            call.freeze(array, "blocks are joined along this axis")
        else:
            result.append(array)
    for other in result[1:]:
        call.tie(*torch.broadcast_tensors(call.project(result[0], (axis,)), call.project(other, (axis,))))
    return result[:1]


def _joined(call: OpCall, pieces: Sequence[list[Tensor]], sizes: Sequence[int], axis: int) -> Tensor:
    """One array along ``axis`` for all parts; parts whose labels vary along other axes too keep that only if all do."""
    ndim = len(call.out_shape)
    found = {support(piece[0]) for piece in pieces if piece}
    shared = len(found) == 1 and all(pieces)
    parts = []
    for piece, size in zip(pieces, sizes, strict=True):
        if not piece:
            parts.append(empty_like_axis(size, ndim, axis))
        elif shared:
            parts.append(piece[0])
        else:
            parts.append(call.project(piece[0], (axis,)))
    if shared:
        shape = list(parts[0].shape)
        if all(p.shape[a] == shape[a] for p in parts for a in range(ndim) if a != axis):
            return compress(torch.cat(parts, axis))
        parts = [call.project(part, (axis,)) for part in parts]
    return torch.cat([flat(part).reshape([-1 if a == axis else 1 for a in range(ndim)]) for part in parts], axis)
