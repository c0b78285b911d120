"""Which factor of a product only says how much of the other one passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.fx import Node

from curlfx.ops.call import named_arguments

GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "_softmax", "log_sigmoid", "special_expit"})
"""Ops whose result is a gate."""
_BARRIERS = frozenset(
    {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
    | {f"conv{axes}d" for axes in (1, 2, 3)}
    | {f"conv_transpose{axes}d" for axes in (1, 2, 3)}
)
"""Ops that make new channels: what lies before them does not tell whether their result is a gate."""


def gate_among(nodes: Sequence[Node], is_live: Callable[[Node], bool]) -> Node | None:
    """The one of two factors that is a gate, or None where both or neither is.

    A gate comes from a sigmoid or a softmax, through ops that have no other input which depends on the images: views,
    casts, dropout, interpolation, constant factors. Where that does not tell, the factor with fewer elements is one
    (squeeze-and-excitation written with other functions).
    """
    gates = [node for node in nodes if _is_gate(node, is_live)]
    if len(gates) == 1:
        return gates[0]
    sizes = [node.meta["val"].numel() for node in nodes]
    return nodes[sizes.index(min(sizes))] if sizes[0] != sizes[1] else None


def _is_gate(node: Node, is_live: Callable[[Node], bool]) -> bool:
    while True:
        name = op_name(node)
        if name in GATES:
            return True
        sources = [source for source in node.all_input_nodes if is_live(source)]
        if name in _BARRIERS or len(sources) != 1 or len(named_arguments(node)) == 0:
            return False
        node = sources[0]


def op_name(node: Node) -> str:
    """Name of an ATen op without namespace and overload, that of its twin where it writes in place; "" for others."""
    schema = getattr(node.target, "_schema", None)
    namespace, _, name = schema.name.partition("::") if schema is not None else ("", "", "")
    if namespace != "aten":
        return ""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else str(name)
