"""Values of nodes that depend on no input of the network: index tables, masks, positions, computed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
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
        self._written: dict[Node, Any] | None = None
        for node in traced.graph.nodes:
            if node.op != "placeholder" and all(_is_number(n) or n in self._fixed for n in node.all_input_nodes):
                self._fixed.add(node)

    def __contains__(self, node: Node) -> bool:
        """Whether the node depends on no input of the network, sizes aside."""
        return node in self._fixed

    def __call__(self, node: Node) -> Any:
        """The node's value, or None where it depends on an input of the network, or is overwritten after it is read."""
        if node not in self._known:
            self._known[node] = None
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: Node) -> Any:
        if _is_number(node):
            return node.meta["val"]
        if node.op == "get_attr":
            return self._traced.parameter(str(node.target))
        if node.op != "call_function" or node not in self._fixed:
            return None
        if self._written is None:
            self._written = _after_writing(self._traced, self._fixed)
        if node in self._written:
            return self._written[node]
        if any(not _is_number(source) and self(source) is None for source in node.all_input_nodes):
            return None

        return _computed(node, self)


def _computed(node: Node, value: Callable[[Node], Any]) -> Any:
    """What a call computes of the values of its inputs."""

    def value_of(item: Any) -> Any:
        if isinstance(item, Node):
            return value(item)
        if isinstance(item, (list, tuple)):
            return [value_of(element) for element in item]
        return item

    with torch.no_grad():
        arguments = [value_of(item) for item in node.args]
        return node.target(*arguments, **{k: value_of(v) for k, v in node.kwargs.items()})  # type: ignore[operator]


def _after_writing(traced: TracedModel, fixed: set[Node]) -> dict[Node, Any]:
    """Values of all nodes that have to do with one that writes in place, computed in the order of the graph.

    None for those that are overwritten after a call that needs an input of the network has read them.
    """
    order = [node for node in traced.graph.nodes if node in fixed and not _is_number(node)]
    writers = [node for node in order if mutates(node)]
    touched = set(writers)
    for node in reversed(order):
        if touched.intersection(node.users):
            touched.add(node)
    for node in order:
        if touched.intersection(node.all_input_nodes):
            touched.add(node)
    values: dict[Node, Any] = {}
    first: dict[Node, Any] = {}
    for node in (node for node in order if node in touched):
        if node.op == "get_attr":
            values[node] = traced.parameter(str(node.target)).detach().clone()
        elif all(_is_number(n) or values.get(n) is not None for n in node.all_input_nodes):
            values[node] = _computed(node, lambda n: n.meta["val"] if _is_number(n) else values[n])
        else:
            values[node] = None
        first[node] = values[node].clone() if isinstance(values[node], Tensor) else values[node]
    settled = {node for node, value in values.items() if _settled(node, value, first[node], writers, fixed)}
    return {node: value if node in settled else None for node, value in values.items()}


def _settled(node: Node, value: Any, first: Any, writers: list[Node], fixed: set[Node]) -> bool:
    """Whether whoever reads a value with an input of the network sees it as it is in the end."""
    if not isinstance(value, Tensor):
        return False
    if torch.equal(value, first):
        return True
    return all(user in fixed or all(writer < user for writer in writers) for user in node.users)


def _is_number(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (int, float, bool))


def mutates(node: Node) -> bool:
    """Whether a node writes in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name != "aten::detach_"
