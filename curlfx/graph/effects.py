"""Which calls write into a tensor that another one may read."""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.fx import Node

from curlfx.graph.modes import mode_of

_DROPOUTS = frozenset(
    getattr(torch.ops.aten, f"{kind}dropout{place}").default
    for kind in ("", "alpha_", "feature_", "feature_alpha_")
    for place in ("", "_")
)


def is_idle_dropout(node: Node) -> bool:
    """Whether a node gives its input back, as dropout does in evaluation mode."""
    return node.target in _DROPOUTS and mode_of(node) is False


def is_impure(node: Node) -> bool:
    """Whether a node writes into a tensor, or is nothing that a traced graph should hold."""
    if is_idle_dropout(node):
        return False
    if node.op != "call_function":
        return node.op not in ("placeholder", "get_attr", "output")
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
