"""Rules of element-wise ops: labels of the operands are tied where they meet."""

from __future__ import annotations

from curlfx.labels.arrays import Arrays, along, flat, support
from curlfx.ops.call import OpCall
from curlfx.ops.meet import Operand, meet


def pointwise(call: OpCall) -> Arrays:
    """Labels of any op whose output element depends on the operands' elements at the same (broadcast) position.

    Shapes: operands broadcastable to the output's shape.
    """
    return meet(call, [Operand(call.arrays(node), call.shape(node)) for node in call.tensors()])


def like_first(call: OpCall) -> Arrays:
    """Labels of the first tensor: copies, casts, dropout, fills."""
    tensors = call.tensors()
    return call.arrays(tensors[0]) if tensors else ()


def shaped_like(call: OpCall) -> Arrays:
    """Labels of ``expand_as``: the two tensors meet."""
    return pointwise(call)


def prelu(call: OpCall) -> Arrays:
    """Labels of ``aten.prelu``: one slope per channel of axis 1, or one for all.

    Shapes: input ``(N, C, *)``, weight ``(C,)`` or ``(1,)``.
    """
    ndim = len(call.shape("self"))
    weight = tuple(along(flat(array), ndim, 1) for array in call.arrays("weight"))
    shape = tuple(call.shape("weight")[0] if axis == 1 else 1 for axis in range(ndim))
    return meet(call, [Operand(call.arrays("self"), call.shape("self")), Operand(weight, shape)])


def unlabelled(call: OpCall) -> Arrays:  # noqa: ARG001 - every rule takes the call
    """Labels of ops that make a tensor from sizes alone (zeros, arange, …): none."""
    return ()


def glu(call: OpCall) -> Arrays:
    """Labels of ``aten.glu``: the first half of the axis is gated by the second, position by position.

    Shapes: input ``(..., 2n, ...)``, output ``(..., n, ...)`` along ``dim``.
    """
    axis = call.axis("dim", "self", -1)
    half = call.shape("self")[axis] // 2
    result = []
    for array in call.arrays("self"):
        if axis not in support(array):
            result.append(array)
            continue
        first, second = array.narrow(axis, 0, half), array.narrow(axis, half, half)
        call.tie(first, second)
        result.append(first)
    return tuple(result)
