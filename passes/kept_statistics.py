"""Normalisations that average over gated-in channels only: what LayerNorm and GroupNorm compute after slimming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from curlfx.coupling import Coupling
from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel

_NAMES = {"aten::layer_norm": "layer", "aten::rms_norm": "rms", "aten::group_norm": "group"}
_ops = torch.ops.aten


def normalise_over_kept(
    graph: TracedModel, coupling: Coupling, masks: Callable[[str], list[Node]]
) -> dict[str, Node]:
    """Spell out every normalisation that runs over labelled channels, with masked sums in place of means.

    Args:
        graph: The network, rewritten in place.
        coupling: Its coupling.
        masks: Gives the gate masks of a tensor, broadcastable to it.

    Returns:
        What stands in for each normalisation now, by its node's name.
    """
    replaced: dict[str, Node] = {}
    original: dict[Node, str] = {}
    for node in list(graph.graph.nodes):
        kind = _NAMES.get(getattr(getattr(node.target, "_schema", None), "name", ""))
        if node.op != "call_function" or kind is None:
            continue
        source = node.args[0]
        label = original.get(source, source.name)
        if not coupling.labels(label):
            continue
        factors = masks(label)
        with graph.graph.inserting_before(node):
            build = _group if kind == "group" else _trailing
            result = build(graph.graph, node, source, factors, kind)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
        replaced[node.name] = result
        original[result] = node.name
    return replaced


def _trailing(graph: Graph, node: Node, source: Node, masks: list[Node], kind: str) -> Node:
    """layer_norm and rms_norm: over the last axes."""
    args = [*node.args, *[None] * (5 - len(node.args))]
    shape, weight, bias, eps = args[1], args[2], args[3] if kind == "layer" else None, args[4 if kind == "layer" else 3]
    axes = list(range(-len(shape), 0))
    if eps is None:
        eps = 1e-5 if kind == "layer" else torch.finfo(source.meta["val"].dtype).eps
    result = _normalised(graph, source, masks, axes, eps, centred=kind == "layer")
    return _affine(graph, result, weight, bias)


def _group(graph: Graph, node: Node, source: Node, masks: list[Node], kind: str) -> Node:
    """group_norm: over the channels of a group and space."""
    args = [*node.args, *[None] * (5 - len(node.args))]
    groups, weight, bias, eps = args[1], args[2], args[3], 1e-5 if args[4] is None else args[4]
    shape = shape_of(source)
    cut = [groups, shape[1] // groups]
    blocks = graph.call_function(_ops.unflatten.int, (source, 1, cut))
    parts = [_cut(graph, mask, cut) for mask in masks]
    result = _normalised(graph, blocks, parts, list(range(2, len(shape) + 1)), eps, centred=True)
    result = graph.call_function(_ops.flatten.using_ints, (result, 1, 2))
    column = [shape[1]] + [1] * (len(shape) - 2)
    laid = [None if p is None else graph.call_function(_ops.reshape.default, (p, column)) for p in (weight, bias)]
    return _affine(graph, result, *laid)


def _cut(graph: Graph, mask: Node, cut: list[int]) -> Node:
    return graph.call_function(_ops.unflatten.int, (mask, 1, cut))


def _normalised(graph: Graph, source: Node, masks: list[Node], axes: list[int], eps: Any, *, centred: bool) -> Node:
    call = graph.call_function
    mask = call(_ops.ones_like.default, (source,))
    for factor in masks:
        mask = call(_ops.mul.Tensor, (mask, factor))
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
