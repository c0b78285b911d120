"""Normalisations that average over gated-in channels only: what LayerNorm and GroupNorm compute after slimming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from curlfx.coupling import Coupling
from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel
from curlfx.ops.call import named_arguments

_NAMES = {"aten::layer_norm": "layer", "aten::rms_norm": "rms", "aten::group_norm": "group"}
_ops = torch.ops.aten


def normalise_over_kept(
    graph: TracedModel, coupling: Coupling, masks: Callable[[str, Node], list[Node]]
) -> dict[str, Node]:
    """Spell out every normalisation that runs over labelled channels, with masked sums in place of means.

    Args:
        graph: The network, rewritten in place.
        coupling: Its coupling.
        masks: Gives the gate masks of a tensor, by the name of its node in the coupling and the node that it is now.

    Returns:
        What stands in for each normalisation now, by its node's name.
    """
    replaced: dict[str, Node] = {}
    original: dict[Node, str] = {}
    for node in list(graph.graph.nodes):
        kind = _kind(node)
        if node.op != "call_function" or kind is None:
            continue
        source = node.args[0]
        label = original.get(source, source.name)
        if not coupling.labels(label):
            continue
        factors = masks(label, source)
        with graph.graph.inserting_before(node):
            build = _group if kind == "group" else _trailing
            result = build(graph.graph, node, source, factors)
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
        replaced[node.name] = result
        original[result] = node.name
    return replaced


def _trailing(graph: Graph, node: Node, source: Node, masks: list[Node]) -> Node:
    """layer_norm and rms_norm: over the last axes."""
    named = named_arguments(node)
    eps = named["eps"]
    if eps is None:
        eps = torch.finfo(source.meta["val"].dtype).eps
    axes = list(range(-len(named["normalized_shape"]), 0))
    mask = _product(graph, source, masks)
    result = _normalised(graph, source, mask, axes, eps, centred=_kind(node) == "layer")
    return _affine(graph, result, named["weight"], named.get("bias"))


def _group(graph: Graph, node: Node, source: Node, masks: list[Node]) -> Node:
    """group_norm: over the channels of a group and space."""
    named = named_arguments(node)
    groups, weight, bias = int(named["num_groups"]), named["weight"], named["bias"]
    shape = shape_of(source)
    cut = [groups, shape[1] // groups]
    blocks = graph.call_function(_ops.unflatten.int, (source, 1, cut))
    mask = graph.call_function(_ops.unflatten.int, (_product(graph, source, masks), 1, cut))
    result = _normalised(graph, blocks, mask, list(range(2, len(shape) + 1)), named["eps"], centred=True)
    result = graph.call_function(_ops.flatten.using_ints, (result, 1, 2))
    column = [shape[1]] + [1] * (len(shape) - 2)
    laid = [None if p is None else graph.call_function(_ops.reshape.default, (p, column)) for p in (weight, bias)]
    return _affine(graph, result, *laid)


def _kind(node: Node) -> str | None:
    return _NAMES.get(getattr(getattr(node.target, "_schema", None), "name", ""))


def _product(graph: Graph, source: Node, masks: list[Node]) -> Node:
    """The masks multiplied, in the shape of the tensor that they belong to."""
    result = graph.call_function(_ops.ones_like.default, (source,))
    for mask in masks:
        result = graph.call_function(_ops.mul.Tensor, (result, mask))
    return result


def _normalised(graph: Graph, source: Node, mask: Node, axes: list[int], eps: Any, *, centred: bool) -> Node:
    call = graph.call_function
    count = call(_ops.sum.dim_IntList, (mask, axes, True))
    count = call(_ops.clamp_min.default, (count, torch.finfo(torch.float32).tiny))  # a group may be gone as a whole

    def average(value: Node) -> Node:
        total = call(_ops.sum.dim_IntList, (call(_ops.mul.Tensor, (value, mask)), axes, True))
        return call(_ops.div.Tensor, (total, count))

    if centred:
        source = call(_ops.sub.Tensor, (source, average(source)))
    spread = call(_ops.add.Tensor, (average(call(_ops.mul.Tensor, (source, source))), eps))
    return call(_ops.mul.Tensor, (source, call(_ops.rsqrt.default, (spread,))))


def _affine(graph: Graph, value: Node, weight: Any, bias: Any) -> Node:
    if weight is not None:
        value = graph.call_function(_ops.mul.Tensor, (value, weight))
    if bias is not None:
        value = graph.call_function(_ops.add.Tensor, (value, bias))
    return value
