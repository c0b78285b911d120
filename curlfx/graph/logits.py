"""Logits: which node of a graph they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from curlfx.errors import ModelError
from curlfx.graph.traced import TracedModel

_ATEN = torch.ops.aten
_HEADS: Mapping[Any, str] = {
    _ATEN.sigmoid.default: "sigmoid",
    _ATEN.softmax.int: "softmax",
    _ATEN.log_softmax.int: "softmax",
}
"""Ops that turn logits into predictions."""
_CLASSES = 1


def output_of(traced: TracedModel) -> Node:
    """The first tensor of a structured output; of a mapping ``out`` or ``logits``, as in training.

    Raises: ModelError.
    """
    flat = pytree.tree_leaves(traced.graph.output_node().args[0], is_leaf=lambda leaf: leaf is None)
    code = traced.graph._codegen
    spec = getattr(getattr(code, "pytree_info", None), "out_spec", None)
    found: Any = flat if spec is None else pytree.tree_unflatten(flat, spec)
    while not isinstance(found, Node):
        if isinstance(found, Mapping) and found:
            named = [found[key] for key in ("out", "logits") if key in found]
            found = named[0] if named else next(iter(found.values()))
        elif isinstance(found, tuple | list) and found:
            found = found[0]
        else:
            raise ModelError(f"the network returns a {type(found).__name__}: want logits in a tensor")
    if not isinstance(found.meta.get("val"), Tensor):
        raise ModelError("the network's first output is no tensor: want logits in a tensor")
    return found


def logits_of(output: Node) -> tuple[Node, str | None]:
    """The logits behind an output, and the op that made predictions of them: ``sigmoid``, ``softmax`` or None."""
    kind = _HEADS.get(output.target)
    if kind is None or not isinstance(output.args[0], Node):
        return output, None
    if kind == "softmax" and output.args[1] not in (_CLASSES, _CLASSES - output.args[0].meta["val"].ndim):
        return output, None
    return output.args[0], kind
