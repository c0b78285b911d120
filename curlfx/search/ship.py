"""Supernets as bytes, for another process: what pickle does not know of graphs and couplings."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate, map_arg

from curlfx.coupling import Coupling
from curlfx.errors import InvariantError, UsageError
from curlfx.graph.traced import TracedModule, tree

_KEPT = ("val", "fixed_mode", "counter", "cumulative", "train_dropout", "counting")
"""What of a node's notes a graph is computed by."""
_EXPLAINING = ("_labelling", "_places")
"""What of a coupling is only for people: why channels are tied."""


class _Named:
    """Stands for a node of the same graph."""

    def __init__(self, name: str) -> None:
        self.name = name


def to_bytes(value: object) -> bytes:
    """The value for `pickle.loads` in a process of the same curlfx; graphs and couplings may be anywhere in it.

    Raises: UsageError for what cannot travel, like a rule of one's own that is no function of a module.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"this network cannot be sent to another process ({reason}); want workers=0") from error
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, OpOverload):
            return _op, (value._schema.name, value._overloadname)
        if isinstance(value, TracedModule):
            rows = [_row(node) for node in value.graph.nodes]
            parts = (
                tree(value, lambda tensor: tensor),
                rows,
                value.graph._codegen,
                type(value).__name__,
                value.training,
            )
            return _module, parts
        if isinstance(value, Coupling):
            return _coupling, ({name: one for name, one in vars(value).items() if name not in _EXPLAINING},)
        return NotImplemented


def _row(node: Node) -> tuple[Any, ...]:
    named: Any = lambda source: _Named(source.name)  # noqa: E731 - an argument of a kind that graphs do not have
    args, kwargs = map_arg((node.args, node.kwargs), named)
    meta = {key: node.meta[key] for key in _KEPT if key in node.meta}
    return node.op, node.name, node.target, args, kwargs, meta


def _op(name: str, overload: str) -> OpOverload:
    namespace, _, packet = name.partition("::")
    found: OpOverload = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
    return found


def _coupling(state: dict[str, Any]) -> Coupling:
    found = Coupling.__new__(Coupling)
    vars(found).update(state)
    return found


def _module(
    modules: nn.Module, rows: list[tuple[Any, ...]], codegen: Any, class_name: str, training: bool
) -> TracedModule:
    graph, nodes = Graph(), dict[str, Node]()

    def read(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, _Named) else value

    for op, name, target, args, kwargs, meta in rows:
        node = graph.create_node(op, target, map_aggregate(args, read), map_aggregate(kwargs, read), name=name)
        if node.name != name:
            raise InvariantError(f"node '{name}' became '{node.name}' on its way to another process")
        node.meta.update(meta)
        nodes[name] = node
    graph.set_codegen(codegen)
    found = TracedModule(modules, graph, class_name)
    found.training = training
    return found
