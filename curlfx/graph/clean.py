"""What an exported graph carries beside the computation, taken away."""

import torch
from torch.fx import Graph, Node

from curlfx.graph.modes import PROVENANCE
from curlfx.graph.verify import is_dead

_CHECKS = frozenset(
    {
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_async.default,
        torch.ops.aten.sym_constrain_range.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
        torch._check,
    }
)

_TRANSPOSED = frozenset({torch.ops.aten.transpose.int, torch.ops.aten.permute.default})


def clean(graph: Graph) -> None:
    """Remove run-time checks and dead nodes, and keep of each node's ``meta`` only where it came from."""
    for node in reversed(graph.nodes):
        if _is_check(node):
            graph.erase_node(node)
    sweep(graph)
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in PROVENANCE if key in node.meta}


def free_layouts(graph: Graph) -> None:
    """Reshape where a network takes a view of transposed axes: whether that has the layout for it is a kernel's choice.

    Attention may leave its result transposed in memory; the export then drops the ``contiguous`` before the view.
    """
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default and node.args[0].target in _TRANSPOSED:
            node.target = torch.ops.aten.reshape.default


def sweep(graph: Graph) -> None:
    """Erase the nodes that nothing reads and that change nothing."""
    for node in reversed(graph.nodes):
        if is_dead(node):
            graph.erase_node(node)


def _is_check(node: Node) -> bool:
    return node.op == "call_function" and node.target in _CHECKS
