"""Taps: a network that returns values from within beside its output, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel, TracedModule


def tapped(traced: TracedModel, names: Sequence[str]) -> TracedModule:
    """The network with output ``(output, [values of the nodes called names])``; it holds the same parameters.

    Raises: KeyError for a name that no node has.
    """
    clone = traced.clone()
    graph, nodes = clone.graph, {node.name: node for node in clone.graph.nodes}
    last, taps = graph.output_node(), [nodes[name] for name in names]
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


def per_image(traced: TracedModel, name: str) -> bool:
    """Whether the value of a node has one entry per image along its first axis."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder" and isinstance(node.meta["val"], Tensor)]
    node = next(node for node in traced.graph.nodes if node.name == name)
    return bool(inputs) and shape_of(node)[:1] == shape_of(inputs[0])[:1]
