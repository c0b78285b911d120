"""Values of nodes that depend on no input of the network: index tables, masks, positions, computed weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from curlfx.graph.traced import TracedModel


class Constants:
    """Evaluates input-free nodes on demand, each once.

    Args:
        traced: The network whose parameters and buffers are read.
    """

    def __init__(self, traced: TracedModel) -> None:
        self._traced = traced
        self._known: dict[Node, Any] = {}
        self._fixed: set[Node] = set()
        for node in traced.graph.nodes:
            if node.op != "placeholder" and all(_is_number(n) or n in self._fixed for n in node.all_input_nodes):
                self._fixed.add(node)

    def __contains__(self, node: Node) -> bool:
        """Whether the node depends on no input of the network, sizes aside."""
        return node in self._fixed

    def __call__(self, node: Node) -> Any:
        """The node's value, or None where it depends on an input of the network or on a mutated tensor."""
        if node not in self._known:
            self._known[node] = None
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: Node) -> Any:
        if _is_number(node):
            return node.meta["val"]
        if node.op == "get_attr":
            return self._traced.parameter(str(node.target))
        if node.op != "call_function" or node not in self._fixed or is_mutated(node):
            return None
        if any(not _is_number(source) and self(source) is None for source in node.all_input_nodes):
            return None

        def value_of(item: Any) -> Any:
            if isinstance(item, Node):
                return self(item)
            if isinstance(item, (list, tuple)):
                return [value_of(element) for element in item]
            return item

        with torch.no_grad():
            arguments = [value_of(item) for item in node.args]
            return node.target(*arguments, **{k: value_of(v) for k, v in node.kwargs.items()})  # type: ignore[operator]


def _is_number(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (int, float, bool))


def is_mutated(node: Node) -> bool:
    """Whether the node or a reader of it writes in place."""
    return any(mutates(call) for call in (node, *node.users))


def mutates(node: Node) -> bool:
    """Whether a node writes in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name != "aten::detach_"
