"""Statistics over gated-in channels only: what normalisations, means, variances and maxima compute after slimming.

Where nothing stays of what a statistic runs over (a group that is gone as a whole), it runs over everything: nobody
reads the result, but it is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from curlfx.coupling import Coupling
from curlfx.coupling.vectors import Ints
from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel
from curlfx.ops.call import is_getitem, named_arguments
from curlfx.ops.reduction import reduced_axes

_ops = torch.ops.aten

SpellOut = Callable[[Graph, Node, list[Node]], Node]
"""Writes one output of a call as sums over what stays, given the masks of the input."""


def normalise_over_kept(
    graph: TracedModel, coupling: Coupling, masks: Callable[[str, Node], list[Node]]
) -> dict[str, Node]:
    """Spell out every statistic that runs over labelled channels, with masked sums in place of means.

    Args:
        graph: The network, rewritten in place.
        coupling: Its coupling.
        masks: Gives the gate masks of a tensor, by the name of its node in the coupling and the node that it is now.

    Returns:
        What stands in for each value that was replaced, by the name of its node.
    """
    replaced: dict[str, Node] = {}
    original: dict[Node, str] = {}
    for node in list(graph.graph.nodes):
        spelled = _SPELLED.get(_name(node))
        if spelled is None:
            continue
        source = node.args[0]
        label = original.get(source, source.name)
        if not _runs_over_channels(node, source, coupling.labels(label)):
            continue
        factors = masks(label, source)
        for output, spell_out in _outputs(node, spelled):
            with graph.graph.inserting_before(node):
                result = spell_out(graph.graph, node, factors)
            result.meta = dict(output.meta)
            output.replace_all_uses_with(result)
            replaced[output.name] = result
            original[result] = output.name
            if output is not node:
                graph.graph.erase_node(output)
        graph.graph.erase_node(node)
    return replaced


def _name(node: Node) -> str:
    """The op's name with its overload, "" for anything that is no op."""
    return str(node.target).removeprefix("aten.") if isinstance(node.target, torch._ops.OpOverload) else ""


def _outputs(node: Node, spelled: Sequence[SpellOut]) -> list[tuple[Node, SpellOut]]:
    """Each value that is read of a call, with what spells it out."""
    if isinstance(node.meta["val"], torch.Tensor):
        return [(node, spelled[0])]
    return [(user, spelled[int(str(user.args[1]))]) for user in node.users if is_getitem(user)]


def _axes(node: Node, ndim: int) -> list[int]:
    """The axes that a statistic runs over."""
    named = named_arguments(node)
    if "normalized_shape" in named:
        return list(range(ndim - len(named["normalized_shape"]), ndim))
    return list(range(1, ndim)) if "num_groups" in named else list(reduced_axes(ndim, named.get("dim")))


def _runs_over_channels(node: Node, source: Node, arrays: Sequence[Ints]) -> bool:
    axes = _axes(node, len(shape_of(source)))
    return any(array.shape[axis] > 1 for array in arrays for axis in axes)


def _layer_norm(graph: Graph, node: Node, masks: list[Node]) -> Node:
    """layer_norm and rms_norm: over the last axes."""
    named = named_arguments(node)
    source = named["input"]
    eps = named["eps"]
    if eps is None:
        eps = torch.finfo(source.meta["val"].dtype).eps
    axes = _axes(node, len(shape_of(source)))
    result = _normalised(graph, source, _mask(graph, source, masks, axes), axes, eps, centred="bias" in named)
    return _affine(graph, result, named["weight"], named.get("bias"))


def _group_norm(graph: Graph, node: Node, masks: list[Node]) -> Node:
    """group_norm: over the channels of a group and space."""
    named = named_arguments(node)
    source, groups = named["input"], int(named["num_groups"])
    shape = shape_of(source)
    cut, axes = [groups, shape[1] // groups], list(range(2, len(shape) + 1))
    blocks, *factors = (
        graph.call_function(_ops.unflatten.int, (part, 1, cut))
        for part in (source, _product(graph, [graph.call_function(_ops.ones_like.default, (source,)), *masks]))
    )
    result = _normalised(graph, blocks, _mask(graph, blocks, factors, axes), axes, named["eps"], centred=True)
    result = graph.call_function(_ops.flatten.using_ints, (result, 1, 2))
    column = [shape[1]] + [1] * (len(shape) - 2)
    affine = (named["weight"], named["bias"])
    laid = [None if p is None else graph.call_function(_ops.reshape.default, (p, column)) for p in affine]
    return _affine(graph, result, *laid)


def _mean(graph: Graph, node: Node, masks: list[Node]) -> Node:
    """mean: the sum of what stays over the number of elements that stay."""
    source, axes, keepdim = _operands(node)
    dtype = named_arguments(node).get("dtype")
    if dtype is not None:
        source = graph.call_function(_ops.to.dtype, (source, dtype))
    return _average(graph, source, _mask(graph, source, masks, axes), axes, keepdim=keepdim)


def _variance(graph: Graph, node: Node, masks: list[Node]) -> Node:
    """Sum of squared deviations over the number of elements that stay, less the correction; NaN for 0/0 as in torch."""
    call, named = graph.call_function, named_arguments(node)
    source, axes, keepdim = _operands(node)
    mask = _mask(graph, source, masks, axes)
    centred = call(_ops.sub.Tensor, (source, _average(graph, source, mask, axes, keepdim=True)))
    squares = call(_ops.mul.Tensor, (call(_ops.mul.Tensor, (centred, centred)), mask))
    correction = int(named["unbiased"]) if "unbiased" in named else named["correction"]
    count = call(_ops.sum.dim_IntList, (mask, axes, keepdim))
    freedom = call(_ops.sub.Tensor, (count, 1 if correction is None else correction))
    freedom = call(_ops.clamp_min.default, (freedom, 0))
    return call(_ops.div.Tensor, (call(_ops.sum.dim_IntList, (squares, axes, keepdim)), freedom))


def _deviation(graph: Graph, node: Node, masks: list[Node]) -> Node:
    return graph.call_function(_ops.sqrt.default, (_variance(graph, node, masks),))


def _extremum(graph: Graph, node: Node, masks: list[Node]) -> Node:
    """amax, amin, max, min: what does not stay loses every comparison."""
    call, largest = graph.call_function, "max" in _name(node)
    source, axes, keepdim = _operands(node)
    gone = call(_ops.eq.Scalar, (_mask(graph, source, masks, axes), 0))
    filled = call(_ops.masked_fill.Scalar, (source, gone, _worst(source.meta["val"].dtype, largest=largest)))
    return call(_ops.amax.default if largest else _ops.amin.default, (filled, axes, keepdim))


def _worst(dtype: torch.dtype, *, largest: bool) -> float:
    """The smallest value of a type where the largest is looked for, and vice versa."""
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    if dtype is torch.bool:
        return not largest
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def _operands(node: Node) -> tuple[Node, list[int], bool]:
    """Input, axes and ``keepdim`` of a reduction."""
    named = named_arguments(node)
    return named["self"], _axes(node, len(shape_of(named["self"]))), bool(named.get("keepdim", False))


_FORMS = ("default", "dim", "correction")
_SPELLED: dict[str, tuple[SpellOut, ...]] = {
    "layer_norm.default": (_layer_norm,),
    "rms_norm.default": (_layer_norm,),
    "group_norm.default": (_group_norm,),
    "mean.default": (_mean,),
    "mean.dim": (_mean,),
    **{f"var.{form}": (_variance,) for form in _FORMS},
    **{f"std.{form}": (_deviation,) for form in _FORMS},
    **{f"var_mean.{form}": (_variance, _mean) for form in _FORMS},
    **{f"std_mean.{form}": (_deviation, _mean) for form in _FORMS},
    **{f"{extremum}.default": (_extremum,) for extremum in ("amax", "amin", "max", "min")},
    **{f"{extremum}.dim": (_extremum,) for extremum in ("max", "min")},
}
"""Op to what spells out each of its outputs; of ``max.dim`` the values alone, channels whose index is read stay."""


def _product(graph: Graph, factors: Sequence[Node]) -> Node:
    result = factors[0]
    for factor in factors[1:]:
        result = graph.call_function(_ops.mul.Tensor, (result, factor))
    return result


def _mask(graph: Graph, source: Node, masks: Sequence[Node], axes: Sequence[int]) -> Node:
    """What stays of a tensor, in its shape; everything, where nothing stays along the axes."""
    call = graph.call_function
    mask = _product(graph, [call(_ops.ones_like.default, (source,)), *masks])
    empty = call(_ops.eq.Scalar, (call(_ops.amax.default, (mask, list(axes), True)), 0))
    return call(_ops.masked_fill.Scalar, (mask, empty, 1))


def _average(graph: Graph, source: Node, mask: Node, axes: Sequence[int], *, keepdim: bool) -> Node:
    call = graph.call_function
    total = call(_ops.sum.dim_IntList, (call(_ops.mul.Tensor, (source, mask)), list(axes), keepdim))
    return call(_ops.div.Tensor, (total, call(_ops.sum.dim_IntList, (mask, list(axes), keepdim))))


def _normalised(graph: Graph, source: Node, mask: Node, axes: Sequence[int], eps: Any, *, centred: bool) -> Node:
    call = graph.call_function
    if centred:
        source = call(_ops.sub.Tensor, (source, _average(graph, source, mask, axes, keepdim=True)))
    spread = _average(graph, call(_ops.mul.Tensor, (source, source)), mask, axes, keepdim=True)
    spread = call(_ops.add.Tensor, (spread, eps))
    return call(_ops.mul.Tensor, (source, call(_ops.rsqrt.default, (spread,))))


def _affine(graph: Graph, value: Node, weight: Any, bias: Any) -> Node:
    if weight is not None:
        value = graph.call_function(_ops.mul.Tensor, (value, weight))
    if bias is not None:
        value = graph.call_function(_ops.add.Tensor, (value, bias))
    return value
