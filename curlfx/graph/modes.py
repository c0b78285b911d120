"""Training and inference mode of a graph: the arguments that ``train()`` and ``eval()`` flip.

Export bakes the mode into the graph as the ``training`` argument of batch normalisation, dropout and their kin. What
`set_mode` needs beside it stands in ``node.meta``, written once by `curlfx.graph.trace`:

- ``fixed_mode``: True where the model computes the same in both modes (``F.dropout(x)`` without ``training=``, a frozen
  normalisation); such a node is never flipped;
- ``counter``: name of the ``num_batches_tracked`` buffer that a call in training mode advances by one;
- ``cumulative``: True where running statistics are plain averages over all batches (``momentum=None``);
- ``train_dropout``: dropout probability of an attention node in training mode;
- ``counting``: True on the nodes that only training mode has.
"""

from functools import cache

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import Argument

_NAMES = frozenset({"training", "train", "use_input_stats"})
_BATCH_NORM_MOMENTUM = 6
_ATTENTION_DROPOUT = 4
PROVENANCE = ("stack_trace", "nn_module_stack")


@cache
def _mode_position(op: object) -> int | None:
    if isinstance(op, OpOverload):
        for position, argument in enumerate(op._schema.arguments):
            if argument.name in _NAMES and isinstance(argument.type, torch.BoolType):
                return position
    return None


def mode_of(node: Node) -> bool | None:
    """Whether this node computes in training mode; None for an op that knows no modes."""
    position = _mode_position(node.target) if node.op == "call_function" else None
    return None if position is None else bool(argument_of(node, position))


def argument_of(node: Node, position: int) -> Argument:
    """Argument at a position of the op's schema, wherever it stands: in order, by name, or left at its default."""
    if position < len(node.args):
        return node.args[position]
    schema = node.target._schema.arguments[position]  # type: ignore[union-attr]
    return node.kwargs.get(schema.name, schema.default_value)


def set_argument(node: Node, position: int, value: Argument) -> None:
    """Write the argument at a position of the op's schema: in order if it stands there, by name otherwise."""
    if position < len(node.args):
        node.update_arg(position, value)
    elif position == len(node.args) and not node.target._schema.arguments[position].kwarg_only:  # type: ignore[union-attr]
        node.args = (*node.args, value)
    else:
        node.update_kwarg(node.target._schema.arguments[position].name, value)  # type: ignore[union-attr]


def set_mode(graph: Graph, training: bool) -> bool:
    """Switch every node that has a mode to training or inference; returns whether anything changed.

    In training mode each batch normalisation comes after ``num_batches_tracked += 1``, as in `torch.nn`.
    The caller recompiles the module.
    """
    changed = False
    for node in list(graph.nodes):
        changed |= _set_node(node, training)
    if changed and not training:
        for node in reversed(graph.nodes):
            if node.meta.get("counting") and not node.users:
                graph.erase_node(node)
    return changed


def _set_node(node: Node, training: bool) -> bool:
    if node.op != "call_function" or node.meta.get("fixed_mode"):
        return False
    if "train_dropout" in node.meta:
        probability: float = node.meta["train_dropout"] if training else 0.0
        changed = bool(argument_of(node, _ATTENTION_DROPOUT) != probability)
        set_argument(node, _ATTENTION_DROPOUT, probability)
        return changed
    position = _mode_position(node.target)
    if position is None or bool(argument_of(node, position)) == training:
        return False
    set_argument(node, position, training)
    if "counter" in node.meta:
        _count_batches(node, training)
    return True


def _count_batches(node: Node, training: bool) -> None:
    if not training:
        if node.meta.get("cumulative"):
            set_argument(node, _BATCH_NORM_MOMENTUM, 0.0)
        return  # `set_mode` erases the counting nodes, which have no users left
    meta = {key: node.meta[key] for key in PROVENANCE if key in node.meta} | {"counting": True}
    graph = node.graph
    with graph.inserting_before(node):
        counter = graph.create_node("get_attr", node.meta["counter"])
        advanced = graph.call_function(torch.ops.aten.add_.Tensor, (counter, 1))
        added = [counter, advanced]
        if node.meta.get("cumulative"):
            added.append(graph.call_function(share_of_one, (advanced,)))
            set_argument(node, _BATCH_NORM_MOMENTUM, added[-1])
    for new in added:
        new.meta.update(meta)


def share_of_one(count: Tensor) -> float:
    """Weight of one batch among ``count``, the momentum of a cumulative average; 1.0 for a meta tensor."""
    return 1.0 if count.is_meta else 1.0 / float(count)
