"""Blocks that export wraps in subgraphs (``no_grad``, ``autocast``, activation checkpoints), put back in line."""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from curlfx.errors import TraceError
from curlfx.graph.source import where

# Name of the operator -> position of the block among its arguments; settings stand before it, operands after it.
_STRAIGHT = {
    "wrap_with_set_grad_enabled": 1,
    "wrap_with_autocast": 4,
    "tag_activation_checkpoint": 0,
    "wrap_activation_checkpoint": 0,
    "wrap": 0,
}


def inline(graph: Graph, holder: GraphModule) -> tuple[str, ...]:
    """Replace each call of a wrapped block by the block's nodes; returns notes on what that changes.

    ``holder`` is the exported module that has the blocks. What a ``no_grad`` block returns is detached, so no more
    gradient flows than before.
    Raises: TraceError for a block that is no straight line of code (``torch.cond``, loops).
    """
    notes: list[str] = []
    _inline_calls(graph, list(graph.nodes), holder, notes)
    return tuple(dict.fromkeys(notes))


def _inline_calls(graph: Graph, nodes: list[Node], holder: GraphModule, notes: list[str]) -> None:
    for node in nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        kind = str(node.target)
        if kind not in _STRAIGHT:
            place = where(node) or f"node '{node.name}'"
            raise TraceError(
                f"{place}: {kind} is control flow inside the graph; trace the part of the model without it"
            )
        _inline_call(graph, node, holder, notes)


def _inline_call(graph: Graph, call: Node, holder: GraphModule, notes: list[str]) -> None:
    kind = str(call.target)
    position = _STRAIGHT[kind]
    settings, reference, operands = call.args[:position], call.args[position], call.args[position + 1 :]
    block = holder.get_submodule(str(reference.target)) if isinstance(reference, Node) else None
    if not isinstance(block, GraphModule):
        raise TraceError(f"node '{call.name}': {kind} has no graph; trace the part of the model without it")
    values: dict[Node, Any] = dict(zip(block.graph.find_nodes(op="placeholder"), operands, strict=True))
    inner: list[Node] = []
    result: Any = None
    with graph.inserting_before(call):
        for node in block.graph.nodes:
            if node.op == "output":
                result = map_arg(node.args[0], values.__getitem__)
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, values.__getitem__)
                inner.append(values[node])
        if kind == "wrap_with_set_grad_enabled" and settings == (False,):
            result = map_arg(result, lambda node: _detached(graph, node) if node in inner else node)
    if kind == "wrap_with_autocast" and settings[2]:
        place = where(call) or call.name
        notes.append(f"{place}: an autocast block runs in the dtype of its inputs, not {settings[1]}")
    _replace(graph, call, result)
    _inline_calls(graph, inner, block, notes)


def _detached(graph: Graph, node: Node) -> Node:
    if not isinstance(node.meta.get("val"), Tensor):
        return node
    detached = graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def _replace(graph: Graph, call: Node, result: Any) -> None:
    if isinstance(result, tuple | list):
        for user in list(call.users):
            if user.target is not operator.getitem:
                raise TraceError(f"node '{user.name}' reads all results of a block at once; trace the model without it")
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        call.replace_all_uses_with(result)
    graph.erase_node(call)
