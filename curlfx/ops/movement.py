"""Rules of data movement: the very same op, run on the label arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.labels.arrays import Arrays, Support, along, ascending, compress, different_columns, support
from curlfx.labels.store import Product
from curlfx.ops.call import Emission, OpCall, Shape, concrete
from curlfx.ops.meet import Operand, meet


def reshaped(call: OpCall) -> Arrays:
    """Labels of view, reshape, flatten, unflatten, squeeze …: row-major order stays.

    Where one labelled axis becomes several, the kept channels must stay rectangular: equal counts per block, and every
    block gets a label of its own. Where axes merge, channels are nested in the blocks that they came from.

    Shapes: input any, output any of the same number of elements.
    """
    source = call.tensors()[0]
    cuts = _cuts(call.shape(source), call.out_shape)
    laid = [(support(array), _relaid(array, cuts)) for array in call.arrays(source)]
    return _rectangular(call, _merged(call, laid))


def reshaped_as(call: OpCall) -> Arrays:
    """Labels of view_as and reshape_as: as :func:`reshaped`, and the result meets the tensor whose shape it takes.

    Shapes: self any, other and output any of the same number of elements.
    """
    shape = call.out_shape
    return meet(call, [Operand(reshaped(call), shape), Operand(call.arrays("other"), shape)])


def permuted(call: OpCall) -> Arrays:
    """Labels of permute, transpose, movedim …: blocks whose axes trade places keep like positions."""
    order = _order(call)
    result: list[Tensor] = []
    for array in call.arrays(call.tensors()[0]):
        axes = [axis for axis in order if array.shape[axis] > 1]
        if axes != sorted(axes):
            array = call.project(array, (max(axes),))
        result.append(_run(call, array))
    return tuple(result)


def sliced(call: OpCall) -> Arrays:
    """Labels of slice and narrow: a part of an axis; a part that takes steps keeps like positions in every block.

    Shapes: input ``(..., n, ...)``, output ``(..., m, ...)`` along ``dim``.
    """
    source = call.tensors()[0]
    axis = call.axis("dim", source)
    size = call.shape(source)[axis]
    start = slice(call.number("start"), None).indices(size)[0]
    single = call.out_shape[axis] == 1 or int(call.number("step", 1) or 1) != 1
    arrays = [_alike(call, array, axis) if single else array for array in call.arrays(source)]
    if call.out_shape[axis] == 0:  # what is not along the axis is still there for whoever joins this to something
        return tuple(array for array in arrays if axis not in support(array))
    for array in arrays:
        if support(array)[-1] == axis and len(support(array)) > 1 and start > 0:
            call.balance(array.narrow(axis, 0, start), _around(array, arrays))
    return _rectangular(call, tuple(_run(call, array) for array in arrays))


def selected(call: OpCall) -> Arrays:
    """Labels of select: one position of an axis; the axis disappears."""
    source = call.tensors()[0]
    axis = call.axis("dim", source)
    arrays = [_alike(call, array, axis) for array in call.arrays(source)]
    return _rectangular(call, tuple(_run(call, array) for array in arrays))


def parted(call: OpCall) -> Emission:
    """Labels of split, chunk, tensor_split, unbind: one emission per part."""
    source = call.tensors()[0]
    axis = call.axis("dim", source)
    values = call.node.meta["val"]
    single = any(value.ndim < len(call.shape(source)) or value.shape[axis] == 1 for value in values)
    result: list[Arrays] = [()] * len(values)
    for array in call.arrays(source):
        for index, piece in enumerate(_execute(call, _alike(call, array, axis) if single else array)):
            result[index] += (compress(piece),)
    return [_rectangular(call, arrays) for arrays in result]


def _alike(call: OpCall, array: Tensor, axis: int) -> Tensor:
    """An array of blocks that end at ``axis``, keeping like positions in all of them."""
    return call.project(array, (axis,)) if support(array)[-1] == axis else array


def _around(array: Tensor, arrays: Sequence[Tensor]) -> Tensor | None:
    """The array among ``arrays`` that labels the blocks of one."""
    return next((other for other in arrays if support(other) == support(array)[:-1]), None)


def indexed(call: OpCall) -> Arrays:
    """Labels of index and index_select: a constant list of positions along one axis is followed (and renumbered later).

    Channels indexed in any other way stay; other axes pass.

    Shapes: input any; each index a constant integer tensor, or None for an axis that is not indexed.
    """
    source = call.tensors()[0]
    followed = followed_axis(call.node)
    if followed is not None and call.constant(followed[1]) is not None:
        axis = followed[0] % len(call.shape(source))
        arrays = call.arrays(source)
        single = [call.project(array, (axis,)) if axis in support(array) else array for array in arrays]
        return tuple(_run(call, array) for array in single)
    axes = _indexed_axes(call, source)
    arrays = call.arrays(source)
    for other in call.tensors()[1:]:
        call.freeze(call.arrays(other), "used as an index")
    call.freeze([array for array in arrays if set(support(array)) & axes], "picked by index along this axis")
    passing = tuple(array for array in arrays if not set(support(array)) & axes)
    if not passing:
        return ()
    values = [call.constant(other) for other in call.tensors()[1:]]
    if any(value is None for value in values):
        call.freeze(passing, "picked by a computed index")
        return ()
    return tuple(_run(call, array) for array in passing)


def followed_axis(node: Node) -> tuple[int, Node] | None:
    """Axis and index of an ``index_select``, or an ``index`` by one integer vector; None for any other indexing."""
    indices = node.args[1] if node.target is torch.ops.aten.index.Tensor else None
    if node.target is torch.ops.aten.index_select.default:
        axis, index = node.args[1], node.args[2]
    elif isinstance(indices, (list, tuple)) and sum(item is not None for item in indices) == 1:
        axis, index = next((place, item) for place, item in enumerate(indices) if item is not None)
    else:
        return None
    if not isinstance(axis, int) or not isinstance(index, Node):
        return None
    value = index.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim != 1 or value.dtype == torch.bool:
        return None
    return axis, index


def rolled(call: OpCall) -> Arrays:
    """Labels of roll: rolled channels stay, the others pass."""
    source = call.tensors()[0]
    ndim = len(call.shape(source))
    axes = {int(axis) % ndim for axis in call.number("dims", [])} or set(range(ndim))
    return call.keep_only(call.arrays(source), [a for a in range(ndim) if a not in axes], "rolled along this axis")


def windows(call: OpCall) -> Arrays:
    """Labels of ``Tensor.unfold``: windows over unlabelled axes; channels along the axis that is cut stay.

    Shapes: input ``(..., n, ...)``, output ``(..., windows, ..., size)``.
    """
    source = call.tensors()[0]
    axis = call.axis("dimension", source)
    others = [other for other in range(len(call.shape(source))) if other != axis]
    arrays = call.keep_only(call.arrays(source), others, "cut into windows along this axis")
    return tuple(_run(call, array) for array in arrays)


def expanded(call: OpCall) -> Arrays:
    """Labels of expand and broadcast_to: axes of size 1 that get a fixed size get free labels of their own.

    Shapes: input any, output with axes of size 1 repeated; axes whose size the graph computes (the batch) have none.
    """
    source = call.tensors()[0]
    sizes, shape = call.arg("size"), call.out_shape
    before = (1,) * (len(shape) - len(call.shape(source))) + call.shape(source)
    fresh = [
        along(call.store.fresh(shape[axis], call.node.name, axis, parameter=False), len(shape), axis)
        for axis in range(len(shape))
        if before[axis] == 1 < shape[axis] and not isinstance(sizes[axis], Node)
    ]
    return (*_run_all(call), *fresh)


def mirrored(call: OpCall) -> Arrays:
    """Labels of flip, repeat, tile, repeat_interleave: the op keeps the order of what is kept."""
    if len(call.tensors()) > 1:  # repeats by a tensor of counts
        call.freeze([array for tensor in call.tensors() for array in call.arrays(tensor)], "repeated unevenly")
        return ()
    return _run_all(call)


def _run_all(call: OpCall) -> Arrays:
    return tuple(_run(call, array) for array in call.arrays(call.tensors()[0]))


def _run(call: OpCall, array: Tensor) -> Tensor:
    return compress(_execute(call, array))


def _execute(call: OpCall, array: Tensor) -> Any:
    """Run the node's op with its first tensor replaced by the expanded labels and its indices by their values."""
    source = call.tensors()[0]
    expanded = array.expand(call.shape(source))

    def replace(value: Any) -> Any:
        if value is source:
            return expanded
        if isinstance(value, Node):
            found = concrete(value)
            return call.constant(value) if isinstance(found, Node) else found
        if isinstance(value, (list, tuple)):
            return [replace(item) for item in value]
        return value

    target: Any = _VIEWS.get(call.node.target, call.node.target)
    arguments = [replace(value) for value in call.node.args]
    return target(*arguments, **{name: replace(value) for name, value in call.node.kwargs.items()})


def _rectangular(call: OpCall, arrays: Arrays) -> Arrays:
    """The arrays, and labels for blocks that have none yet; channels keep equal counts per block."""
    result: list[Tensor] = []
    known = {support(array): array for array in arrays}
    for array in arrays:
        around = known.get(support(array)[:-1]) if len(support(array)) > 1 else None
        if around is not None:
            call.balance(array, around)
            result.append(_nested(call, array, [around]))
            continue
        result.append(array)
        for block in call.blocks(array):
            if support(block) not in known:
                known[support(block)] = block
                result.append(block)
    return tuple(result)


def _merged(call: OpCall, laid: Sequence[tuple[Support, Tensor]]) -> Arrays:
    """One array per set of axes: where several end up along the same axes, the innermost is nested in the others.

    Args:
        call: The call, for recording.
        laid: Arrays of the result, and the axes along which they varied before.
    """
    found: dict[Support, list[tuple[Support, Tensor]]] = {}
    for before, array in laid:
        found.setdefault(support(array), []).append((before, array))
    result: list[Tensor] = []
    for after, members in found.items():
        if len(members) == 1 or not after:
            result.extend(array for _, array in members)
            continue
        (_, child), *others = sorted(members, key=lambda member: (member[0][-1], len(member[0])), reverse=True)
        result.append(_nested(call, child, [parent for _, parent in others]))
    return tuple(result)


def _nested(call: OpCall, child: Tensor, parents: Sequence[Tensor]) -> Tensor:
    """An array whose channels go with others too; labels of their own for channels that do in some places only.

    Shapes: every parent broadcastable to the child.
    """
    inner = child.reshape(-1)
    if not ascending(inner):  # labels that occur once are in one place each
        together = torch.stack([inner, *(parent.expand(child.shape).reshape(-1) for parent in parents)])
        place, which = different_columns(together, call.store.size)
        if len(place) > len(torch.unique(inner)):
            cells = together[:, place]
            labels = call.store.fresh(len(place), call.node.name, support(child)[-1], parameter=False)
            call.store.align(labels, cells[0], call.node.name)
            call.store.products.append(Product(labels, tuple(cells)))
            child = labels[which].reshape(child.shape)
    for parent in parents:
        call.nest(child, parent)
    return child


def _cuts(old: Shape, new: Shape) -> list[tuple[Shape, Shape]]:
    """The sizes of two shapes of as many elements, cut into the shortest parts with equal products."""
    cuts: list[tuple[Shape, Shape]] = []
    left = right = 0
    while left < len(old) or right < len(new):
        start, first, before, after = left, right, 1, 1
        while left == start or right == first or before != after:
            if right == len(new) or (left < len(old) and before <= after):
                before, left = before * old[left], left + 1
            else:
                after, right = after * new[right], right + 1
            if left == len(old) and right == len(new):
                break
        cuts.append((old[start:left], new[first:right]))
    return cuts


def _relaid(array: Tensor, cuts: Sequence[tuple[Shape, Shape]]) -> Tensor:
    """A reshaped array; only the parts of the shape along which it varies are written out."""
    expanded: list[int] = []
    target: list[int] = []
    start = 0
    for old, new in cuts:
        varies = any(size > 1 for size in array.shape[start : start + len(old)])
        expanded += old if varies else [1] * len(old)
        target += new if varies else [1] * len(new)
        start += len(old)
    return compress(array.expand(expanded).reshape(target))


def _order(call: OpCall) -> list[int]:
    """For each output axis of a permutation, the input axis it came from."""
    shape = call.shape(call.tensors()[0])
    order = []
    for axis, size in enumerate(shape):
        mark = along(torch.arange(size), len(shape), axis)
        moved = support(_run(call, mark))
        order.append((moved[0] if moved else -1, axis))
    return [axis for place, axis in sorted(order) if place >= 0]


def _indexed_axes(call: OpCall, source: Node) -> set[int]:
    ndim = len(call.shape(source))
    if call.arg("indices") is not None:
        return {axis for axis, index in enumerate(call.arg("indices")) if index is not None}
    return {int(call.number("dim", 0)) % ndim}


_VIEWS: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}
