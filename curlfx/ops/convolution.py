"""Rules of convolutions of any number of axes: plain, grouped, depthwise, transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from curlfx.labels.arrays import Arrays, along, flat, support
from curlfx.ops.call import OpCall
from curlfx.ops.contract import Factor, contract
from curlfx.ops.contraction import with_bias

_IN, _KERNEL, _OUT = "xyz", "uvw", "XYZ"
_ALONG = "a convolution runs along the channels"
_UNLABELLED_GROUPS = "grouped convolution of channels without labels"


def convolution(call: OpCall) -> Arrays:
    """Labels of ``aten.conv1d/2d/3d``: input channels contracted with weight axis 1, weight axis 0 labels the output.

    Shapes: input ``(N, C, *)``, weight ``(K, C / groups, *kernel)``, bias ``(K,)``, output ``(N, K, *)``.
    Source: aten/src/ATen/native/Convolution.cpp.
    """
    return _dispatch(call, out_axis=0, in_axis=1)


def transposed(call: OpCall) -> Arrays:
    """Labels of ``aten.conv_transpose1d/2d/3d``: weight axis 0 is contracted, axis 1 labels the output.

    Shapes: input ``(N, C, *)``, weight ``(C, K / groups, *kernel)``, bias ``(K,)``, output ``(N, K, *)``.
    """
    return _dispatch(call, out_axis=1, in_axis=0)


def _dispatch(call: OpCall, *, out_axis: int, in_axis: int) -> Arrays:
    shape = call.shape("input")
    if len(shape) != len(call.shape("weight")):
        return _refuse(call, out_axis, "convolution of an unbatched input")
    channels, groups = shape[1], int(call.number("groups", 1))
    if groups == 1:
        arrays = _dense(call, out_axis, in_axis)
    elif groups == channels and (out_axis == 0 or call.shape("weight")[1] == 1):
        arrays = _depthwise(call, channels)
    elif call.arg("weight").op != "get_attr":
        return _refuse(call, out_axis, "grouped convolution with a computed weight")
    else:
        arrays = _grouped(call, groups, in_axis)
    return with_bias(call, arrays, "bias", 1)


def _refuse(call: OpCall, out_axis: int, reason: str) -> Arrays:
    """Everything that meets here stays; the layer still counts as one that makes its output channels."""
    call.produce([array for array in call.arrays("weight") if support(array) == (out_axis,)])
    for name in ("input", "weight", "bias"):
        call.freeze(call.arrays(name), reason)
    return ()


def _dense(call: OpCall, out_axis: int, in_axis: int) -> Arrays:
    space = len(call.shape("input")) - 2
    letters = ["", ""]
    letters[out_axis], letters[in_axis] = "k", "c"
    call.read("input", [1])
    call.produce([array for array in call.arrays("weight") if support(array) == (out_axis,)])
    pointwise = _pointwise_axes(call)
    where = [axis for axis in range(space + 2) if axis < 2 or axis in pointwise]
    factors = [
        Factor(call.keep_only(call.arrays("input"), where, _ALONG), call.shape("input"), "nc" + _IN[:space]),
        Factor(call.arrays("weight"), call.shape("weight"), "".join(letters) + _KERNEL[:space]),
    ]
    outside = "".join(_IN[axis] if axis + 2 in pointwise else _OUT[axis] for axis in range(space))
    return contract(call, factors, "nk" + outside)


def _pointwise_axes(call: OpCall) -> tuple[int, ...]:
    """Axes of the input along which the kernel is one wide and takes every position by itself."""
    shape = call.shape("weight")
    space = len(shape) - 2

    def each(name: str, default: int) -> list[Any]:
        found = call.number(name, default)
        values = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        return values if len(values) == space else values[:1] * space

    steps = zip(each("stride", 1), each("padding", 0), each("output_padding", 0), strict=True)
    plain = [stride == 1 and before in (0, "same", "valid") and after == 0 for stride, before, after in steps]
    return tuple(axis + 2 for axis in range(space) if shape[axis + 2] == 1 and plain[axis])


def _channel_vector(call: OpCall) -> tuple[Tensor | None, Arrays]:
    """Labels ``(C,)`` along the input's channel axis, and the arrays along axes that pass."""
    arrays = call.keep_only(call.arrays("input"), (0, 1, *_pointwise_axes(call)), _ALONG)
    ending = [call.project(array, (1,)) for array in arrays if support(array)[-1] == 1]
    for other in ending[1:]:
        call.tie(ending[0], other)
    passing = [array for array in arrays if support(array)[-1] != 1]
    others = tuple(call.project(array, tuple(axis for axis in support(array) if axis != 1)) for array in passing)
    return (flat(ending[0]) if ending else None), others


def _axis_labels(call: OpCall, axis: int) -> Tensor | None:
    """Labels of one axis of the weight; its other axes' arrays are handled elsewhere."""
    for array in call.arrays("weight"):
        if support(array) == (axis,):
            return flat(array)
    return None


def _freeze_kernel(call: OpCall) -> None:
    call.freeze([a for a in call.arrays("weight") if support(a)[-1] > 1], "summed over without a partner")


def _depthwise(call: OpCall, channels: int) -> Arrays:
    """Every input channel owns ``K / C`` output channels: they go together."""
    _freeze_kernel(call)
    vector, batch = _channel_vector(call)
    out = _axis_labels(call, 0)
    if out is None or vector is None:
        call.produce([] if out is None else [out])
        stuck = [labels for labels in (out, vector) if labels is not None]
        call.freeze(stuck, "depthwise convolution of channels without labels")
        return batch
    call.tie(vector[:, None], out.reshape(channels, -1))
    return (*batch, along(out, len(call.out_shape), 1))


def _grouped(call: OpCall, groups: int, in_axis: int) -> Arrays:
    """Groups keep equal numbers of input and of output channels, at positions of their own; or go whole.

    The weight's second axis then differs from group to group: it is labelled by a matrix, ``(K, C / groups)``, or
    ``(C, K / groups)`` for a transposed convolution. A group has one label at both ends.
    """
    _freeze_kernel(call)
    shape = call.shape("weight")
    vector, batch = _channel_vector(call)
    rows, columns = _axis_labels(call, 0), _axis_labels(call, 1)
    out = rows if in_axis == 1 else _fresh_outputs(call, groups)
    if out is None or vector is None:
        stuck = [labels for labels in (rows, vector, columns, out) if labels is not None]
        call.produce([labels for labels in (out,) if labels is not None])
        call.freeze(stuck, _UNLABELLED_GROUPS)
        return batch
    call.produce([out])
    call.read("input", [1])
    if in_axis == 0 and rows is not None:
        call.tie(vector, rows)
    call.tie(_groups_of(call, vector, groups), _groups_of(call, out, groups))
    inner = vector if in_axis == 1 else out
    if shape[1] > 1:
        matrix = inner.reshape(groups, 1, shape[1]).expand(groups, shape[0] // groups, shape[1])
        call.relabel("weight", 1, matrix.reshape((*shape[:2],) + (1,) * (len(shape) - 2)))
    return (*batch, along(out, len(call.out_shape), 1))


def _groups_of(call: OpCall, vector: Tensor, groups: int) -> Tensor:
    """Labels ``(groups,)`` for the groups of channels ``(C,)``: the channels themselves where each has one."""
    if vector.numel() == groups:
        return vector
    (found,) = call.blocks(vector.reshape(groups, -1))
    return flat(found)


def _fresh_outputs(call: OpCall, groups: int) -> Tensor:
    """Labels ``(K,)`` of the output of a transposed convolution; no axis of the weight has one for each."""
    count = groups * call.shape("weight")[1]
    return call.store.fresh(count, call.node.name, 1, parameter=False)
