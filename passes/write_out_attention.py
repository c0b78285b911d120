"""Write attention that has no ONNX counterpart as products and a softmax."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

from curlfx.errors import InvariantError
from curlfx.graph import TracedModel, shape_of
from curlfx.ops.call import named_arguments
from curlfx.passes.base import Pass

_ATEN = torch.ops.aten
_ATTENTION = _ATEN.scaled_dot_product_attention.default
_AXES = 4


@dataclass(frozen=True)
class WriteOutAttention(Pass):
    """Write ``scaled_dot_product_attention`` out where PyTorch's ONNX exporter does not take it, or gets it wrong.

    It takes queries, keys and values of 4 axes ``(batch, heads, tokens, channels)`` that do not broadcast; windows and
    areas (Twins, Hiera, NesT, Segment Anything) have 5. Below operator set 23 it gives queries that may attend to
    nothing a mean of all values, or NaN; from there on, onnxruntime refuses masks that broadcast over tokens. Products
    and softmax take any number of axes and any batch size. Attention with dropout, which a network in eval mode has
    none of, stays as it is.

    Source: the reference code in the documentation of ``torch.nn.functional.scaled_dot_product_attention``; queries
    that may attend to nothing give 0, as in torch.
    """

    name: ClassVar[str] = "write-out-attention"

    def rewrite(self, traced: TracedModel) -> bool:
        """Replace every such node, in graph order."""
        found = [node for node in _calls(traced) if not _is_taken(traced, node)]
        for node in found:
            with traced.graph.inserting_before(node):
                result = _written_out(traced, node)
            result.meta["val"] = node.meta["val"]  # another attention may read it
            node.replace_all_uses_with(result)
        return bool(found)

    def ensures(self, before: TracedModel, after: TracedModel) -> None:  # noqa: ARG002 - only the result matters
        """Check that no attention is left that would be refused.

        Raises: InvariantError.
        """
        for node in _calls(after):
            if not _is_taken(after, node):
                raise InvariantError(f"node '{node.name}' is left and could be written out")


def _calls(traced: TracedModel) -> list[Node]:
    """All attention without dropout."""
    found = traced.graph.find_nodes(op="call_function", target=_ATTENTION)
    return [node for node in found if not named_arguments(node).get("dropout_p")]


def _is_taken(traced: TracedModel, node: Node) -> bool:
    """Whether the exporter translates a node rightly, whatever the operator set."""
    given = named_arguments(node)
    mask = given.get("attn_mask")
    query, key, value = (shape_of(given[name]) for name in ("query", "key", "value"))
    if isinstance(mask, Node) and (_may_hide_everything(traced, mask) or shape_of(mask)[-2:] != (query[-2], key[-2])):
        return False
    scale = given.get("scale")
    if {len(query), len(key), len(value)} != {_AXES} or (scale is not None and scale <= 0):
        return False
    if key[:2] != value[:2] or query[0] != key[0]:
        return False
    return bool(query[1] != key[1]) if given.get("enable_gqa") else bool(query[1] == key[1])


def _written_out(traced: TracedModel, node: Node) -> Node:
    """The nodes that compute what an attention node does; returns the last.

    Shapes: query ``(…, h, T, C)``, key ``(…, h, S, C)``, value ``(…, h, S, D)``, mask broadcast to ``(…, h, T, S)``,
    result ``(…, h, T, D)``; with grouped queries key and value have a divisor of ``h``.
    """
    given = named_arguments(node)
    query, key, value, mask = (given.get(name) for name in ("query", "key", "value", "attn_mask"))
    if not (isinstance(query, Node) and isinstance(key, Node) and isinstance(value, Node)):
        raise InvariantError(f"node '{node.name}': its query, key or value is no tensor")

    def call(target: Any, *args: Any) -> Node:
        made = traced.graph.call_function(target, args)
        made.meta = {kept: held for kept, held in node.meta.items() if kept != "val"}
        return made

    if given.get("enable_gqa"):
        key, value = (_for_each_query(call, one, shape_of(query)[-3]) for one in (key, value))
    scale = given.get("scale")
    scaled = call(_ATEN.mul.Tensor, query, shape_of(query)[-1] ** -0.5 if scale is None else scale)
    scores = call(_ATEN.matmul.default, scaled, call(_ATEN.transpose.int, key, -2, -1))
    if given.get("is_causal"):
        later = call(_ATEN.triu.default, call(_ATEN.full_like.default, scores, -math.inf), 1)
        scores = call(_ATEN.add.Tensor, scores, later)
    elif isinstance(mask, Node) and mask.meta["val"].dtype == torch.bool:
        scores = call(_ATEN.masked_fill.Scalar, scores, call(_ATEN.logical_not.default, mask), -math.inf)
    elif isinstance(mask, Node):
        scores = call(_ATEN.add.Tensor, scores, mask)
    result = call(_ATEN.matmul.default, call(_ATEN.softmax.int, scores, -1), value)
    if isinstance(mask, Node) and _may_hide_everything(traced, mask):
        hidden = call(_ATEN.eq.Scalar, call(_ATEN.amax.default, scores, [-1], True), -math.inf)
        result = call(_ATEN.masked_fill.Scalar, result, hidden, 0.0)
    return result


def _for_each_query(call: Any, tensor: Node, heads: int) -> Node:
    """Keys or values of grouped queries, repeated; shape ``(…, g, S, C)`` to ``(…, heads, S, C)``."""
    shape = shape_of(tensor)
    repeated = [-1] * (len(shape) - 2) + [heads // shape[-3], -1, -1]
    expanded = call(_ATEN.expand.default, call(_ATEN.unsqueeze.default, tensor, -3), repeated)
    return call(_ATEN.flatten.using_ints, expanded, -4, -3)  # type: ignore[no-any-return]


def _may_hide_everything(traced: TracedModel, mask: Node) -> bool:
    """Whether a mask may leave a query nothing to attend to: no for a constant that does not."""
    if mask.op != "get_attr":
        return True
    held = traced.parameter(str(mask.target))
    seen = held if held.dtype == torch.bool else held != -math.inf
    return not bool(seen.any(-1).all())
