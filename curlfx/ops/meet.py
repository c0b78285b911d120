"""Where tensors meet element by element (add, mul, where, cat along another axis): tie labels at equal positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from curlfx.labels.arrays import Arrays, Support, align, support
from curlfx.ops.call import OpCall, Shape


@dataclass(frozen=True)
class Operand:
    """Label arrays and shape of one tensor that takes part in an op."""

    arrays: Arrays
    shape: Shape


def meet(call: OpCall, operands: Sequence[Operand], *, ignore: int | None = None) -> Arrays:
    """Tie the operands' labels where they meet under broadcasting.

    Labels along axes where another operand has size 1 pass; labels that meet a full axis without labels freeze.
    Where one operand's labels vary along ``(head, d)`` and another's along ``(d,)``, positions are tied across heads.

    Args:
        call: The call, for recording.
        operands: Arrays and shapes, right-aligned as in broadcasting.
        ignore: Axis (of the aligned shape) along which the operands do not meet, e.g. the axis of a concatenation.

    Returns:
        Arrays of the result (those that vary along ``ignore`` are left out).
    """
    ndim = max(len(operand.shape) for operand in operands)
    shapes = [(1,) * (ndim - len(operand.shape)) + operand.shape for operand in operands]
    tables: list[dict[Support, Tensor]] = [{} for _ in operands]
    for table, operand in zip(tables, operands, strict=True):
        for raw in operand.arrays:
            array = align(raw, ndim)
            if ignore is None or ignore not in support(array):
                _enter(call, table, array)
    for size in range(ndim, 0, -1):
        found = sorted({key for table in tables for key in table if len(key) == size})
        for key in found:
            _settle(call, tables, shapes, key)
    result: dict[Support, Tensor] = {}
    for table in tables:
        for key, array in table.items():
            result.setdefault(key, array)
    return tuple(result.values())


def _enter(call: OpCall, table: dict[Support, Tensor], array: Tensor) -> None:
    """Add an array to an operand's table; two arrays that vary alike are tied into one."""
    key = support(array)
    if not key:
        call.freeze(array, "a whole tensor hangs on one channel")
    elif key in table:
        call.tie(table[key], array)
    else:
        table[key] = array


def _settle(call: OpCall, tables: list[dict[Support, Tensor]], shapes: list[Shape], key: Support) -> None:
    """Match the arrays that vary along ``key`` with what the other operands carry there."""
    owners = [index for index, table in enumerate(tables) if key in table]
    array = tables[owners[0]][key]
    for index in owners[1:]:
        call.tie(array, tables[index][key])
    target = set(key)
    frozen = False
    for index, table in enumerate(tables):
        if index in owners:
            continue
        full = {axis for axis in key if shapes[index][axis] > 1}
        if key[-1] not in full:
            continue
        inner = [other for other in table if set(other) < set(key) and other[-1] == key[-1]]
        if inner:
            longest: Support = max(inner, key=len)
            target &= set(longest)
        else:
            frozen = True
    if frozen:
        call.freeze(array, "meets an axis whose channels have no labels")
        for index in owners:
            del tables[index][key]
    elif target != set(key):
        projected = call.project(array, tuple(sorted(target)))
        for index in owners:
            del tables[index][key]
            _enter(call, tables[index], projected)
