"""Taps: a network that returns values from within beside its output, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel, TracedModule
from curlfx.passes.functionalise import is_new


def tapped(traced: TracedModel, names: Sequence[str]) -> TracedModule:
    """The network with output ``(output, [values of the nodes called names])``; it holds the same parameters.

    The values are those that the nodes return: what an operator like ``relu_`` writes into later is copied before.

    Raises: KeyError for a name that no node has.
    """
    clone = traced.clone()
    graph, nodes = clone.graph, {node.name: node for node in clone.graph.nodes}
    last, taps = graph.output_node(), [_kept(graph, nodes[name]) for name in names]
    found = last.args[0]
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None or info.out_spec is None:
        last.args = ((found, taps),)
    else:
        flat = found if isinstance(found, tuple | list) else (found,)
        output = pytree.tree_unflatten([0] * info.out_spec.num_leaves, info.out_spec)
        spec = pytree.tree_structure((output, [0] * len(taps)))
        graph._codegen.pytree_info = info._replace(out_spec=spec)  # type: ignore[attr-defined]
        last.args = ((*flat, *taps),)
    clone.recompile()
    return clone.module


def _kept(graph: Graph, node: Node) -> Node:
    """The node, or a copy of its value where that may be written into before the network returns."""
    if not _may_change(graph, node):
        return node
    with graph.inserting_after(node):
        return graph.call_function(torch.ops.aten.clone.default, (node,))


def _may_change(graph: Graph, node: Node) -> bool:
    """Whether any operator writes into its input and that may be the memory of a node's value."""
    if not is_new(node):
        return any(_writes(other) for other in graph.nodes)
    seen, ahead = {node}, [node]
    while ahead:
        readers = [reader for reader in ahead.pop().users if reader not in seen and not is_new(reader)]
        if any(_writes(reader) for reader in readers):
            return True
        seen.update(readers)
        ahead.extend(readers)
    return False


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def per_image(traced: TracedModel, name: str) -> bool:
    """Whether the value of a node has one entry per image along its first axis."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder" and isinstance(node.meta["val"], Tensor)]
    node = next(node for node in traced.graph.nodes if node.name == name)
    return bool(inputs) and shape_of(node)[:1] == shape_of(inputs[0])[:1]
