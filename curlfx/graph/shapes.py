"""Shapes of every value of a graph, found by running it on meta tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from curlfx.errors import InvariantError
from curlfx.graph.source import where
from curlfx.graph.traced import TracedModel

_META = torch.device("meta")


def propagate(traced: TracedModel) -> None:
    """Run the graph on meta tensors of the example inputs and keep each node's value in ``node.meta["val"]``.

    A value is a meta tensor, an int, float or bool (sizes are plain numbers), None, or a tuple or list of these.
    Raises: InvariantError naming the node whose op does not take the shapes that arrive.
    """
    graph = traced.graph
    inputs = iter(graph._codegen.process_inputs(*_example(traced)))
    tensors: dict[int, Tensor] = {}
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                value = next(inputs)
                value = _meta(value) if isinstance(value, Tensor) else value
            elif node.op == "get_attr":
                value = _attribute(traced, node, tensors)
            elif node.op == "output":
                value = _arguments(node.args[0], values)
            else:
                value = _call(node, values)
            values[node] = node.meta["val"] = value


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's value at the example batch.

    Raises: InvariantError when the value is no tensor or shapes have not been propagated.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise InvariantError(f"node '{node.name}': its value is {type(value).__name__}, want a tensor with a shape")
    return tuple(value.shape)


def _example(traced: TracedModel) -> tuple[Any, ...]:
    """Example inputs in the floating dtype of the parameters, if they share one: a cast network keeps its example."""
    dtypes = {p.dtype for p in traced.module.parameters() if p.is_floating_point()}
    if len(dtypes) != 1:
        return traced.example_inputs
    (dtype,) = dtypes
    return pytree.tree_map_only(  # type: ignore[no-any-return]
        Tensor,
        lambda x: _meta(x, dtype) if x.is_floating_point() else x,
        traced.example_inputs,
    )


def _meta(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device=_META)


def _attribute(traced: TracedModel, node: Node, tensors: dict[int, Tensor]) -> Any:
    try:
        tensor = traced.parameter(str(node.target))
    except KeyError:
        value: Any = traced.module
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        if value is None or isinstance(value, nn.Module):
            raise InvariantError(f"node '{node.name}': no parameter, buffer or constant '{node.target}'") from None
        return value
    if id(tensor) not in tensors:
        tensors[id(tensor)] = _meta(tensor)
    return tensors[id(tensor)]


def _arguments(arguments: Any, values: dict[Node, Any]) -> Any:
    def lookup(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        return _META if isinstance(argument, torch.device) else argument

    return map_aggregate(arguments, lookup)


def _call(node: Node, values: dict[Node, Any]) -> Any:
    if node.op != "call_function" or not callable(node.target):
        raise InvariantError(f"node '{node.name}': a {node.op} node has no place in a traced graph")
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        # An op like unsqueeze_ changes the shape of its operand: what was recorded must not change with it.
        for operand in node.all_input_nodes:
            if isinstance(operand.meta["val"], Tensor):
                operand.meta["val"] = values[operand].detach()
    try:
        return node.target(*_arguments(node.args, values), **_arguments(node.kwargs, values))
    except Exception as cause:
        operands = [values[operand] for operand in node.all_input_nodes]
        shapes = ", ".join(str(tuple(value.shape)) for value in operands if isinstance(value, Tensor))
        place = f", {where(node)}" if where(node) else ""
        raise InvariantError(
            f"node '{node.name}' ({node.target}{place}) does not take the shapes that arrive: {shapes}: {cause}"
        ) from cause
