"""Rules of normalisations: affine parameters and statistics belong to the channel they scale."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from curlfx.labels.arrays import Arrays, along, flat, support
from curlfx.ops.call import OpCall


def batch_norm(call: OpCall) -> Arrays:
    """Labels of ``aten.batch_norm``: weight, bias and running statistics tied to the channel.

    Where the batch itself gives the statistics, they run over every other axis, and channels there stay.

    Shapes: input ``(N, C, *)``, each parameter ``(C,)``.
    """
    arrays = call.arrays("input")
    if bool(call.number("training", False)) or not call.has("running_mean"):
        arrays = call.keep_only(arrays, (1,), "batch statistics run over this axis")
    return _per_channel(call, arrays, ("weight", "bias", "running_mean", "running_var"))


def instance_norm(call: OpCall) -> Arrays:
    """Labels of ``aten.instance_norm``: as batch normalisation; statistics run over space, which stays whole.

    Shapes: input ``(N, C, *)``, each parameter ``(C,)``.
    """
    arrays = call.keep_only(call.arrays("input"), (0, 1), "instance normalisation runs over this axis")
    return _per_channel(call, arrays, ("weight", "bias", "running_mean", "running_var"))


def group_norm(call: OpCall) -> Arrays:
    """Labels of ``aten.group_norm``: groups keep equal counts or go whole; a group's statistics change (reported).

    Shapes: input ``(N, C, *)``, weight and bias ``(C,)``.
    """
    arrays = call.keep_only(call.arrays("input"), (0, 1), "group normalisation runs over this axis")
    groups = int(call.number("num_groups"))
    arrays = _per_channel(call, arrays, ("weight", "bias"))
    for array in arrays:
        if support(array) == (1,) and groups < array.numel():
            call.blocks(flat(array).reshape(groups, -1))
            call.store.statistics.extend(flat(array).reshape(groups, -1))
    return arrays


def layer_norm(call: OpCall) -> Arrays:
    """Labels of ``aten.layer_norm`` / ``rms_norm``: affine tied; statistics over the kept channels change (reported).

    Shapes: input ``(..., *normalized_shape)``, weight and bias ``normalized_shape``.
    """
    ndim = len(call.shape("input"))
    axes = range(ndim - len(call.number("normalized_shape")), ndim)
    names = [name for name in ("weight", "bias") if call.has(name)]
    result: list[Tensor] = []
    for array in call.arrays("input"):
        if support(array)[-1] not in axes:
            if set(support(array)) & set(axes):
                call.freeze(array, "layer normalisation over part of a block")
            else:
                result.append(array)
            continue
        array = call.project(array, (support(array)[-1],))
        call.store.statistics.append(flat(array))
        result.append(array)
    labelled = {support(array)[0]: array for array in result if support(array)[-1] in axes}
    for name in names:
        for parameter in call.arrays(name):
            place = support(parameter)[0] + axes[0]
            if place in labelled:
                call.tie(flat(labelled[place]), flat(parameter))
            else:
                call.freeze(parameter, "normalises an axis without labels")
    return tuple(result)


def _per_channel(call: OpCall, arrays: Arrays, names: Sequence[str]) -> Arrays:
    """Tie vectors ``(C,)`` to the labels along axis 1; arrays along other axes pass."""
    result: list[Tensor] = []
    vector: Tensor | None = None
    for array in arrays:
        if support(array)[-1] != 1:
            result.append(array)
            continue
        projected = call.project(array, (1,))
        if vector is None:
            vector = flat(projected)
        else:
            call.tie(vector, flat(projected))
    for name in names:
        for parameter in call.arrays(name) if call.has(name) else ():
            if vector is None:
                call.freeze(parameter, "normalises channels without labels")
            else:
                call.tie(vector, flat(parameter))
    if vector is not None:
        result.append(along(vector, len(call.out_shape), 1))
    return tuple(result)
