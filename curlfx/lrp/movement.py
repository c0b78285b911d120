"""Relevance of ops that pick or move elements: it goes back to where they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.lrp.call import Call, Flow, Parts


def routed(call: Call, relevance: Flow) -> Parts:
    """``VJP(R)``: views, slices, concatenation, padding, max pooling, maxima; the winner takes all.

    Overlapping windows add up. What came from a constant (a class token, padding) stays there.

    Shapes: those of the op; every tensor among the inputs gets its part.
    """
    leaves: list[Tensor] = []

    def leaf(node: Node | None, value: Any) -> Any:
        if node is None:
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    nodes = call.nodes()
    arguments: dict[str, Any] = {}
    for name, node in nodes.items():
        value = call[name]
        if isinstance(node, list):
            arguments[name] = [leaf(*pair) for pair in zip(node, value, strict=True)]
        else:
            arguments[name] = leaf(node, value)
    with torch.enable_grad():
        output = call.run(**arguments)
    outputs, given = ([output], [relevance]) if isinstance(output, Tensor) else (output, relevance)
    pairs = [(y, r) for y, r in zip(outputs, given, strict=True) if r is not None]
    ends, cotangents = [y for y, _ in pairs], [r for _, r in pairs]
    gradients = iter(torch.autograd.grad(ends, leaves, cotangents, allow_unused=True))
    return {
        name: [None if each is None else next(gradients) for each in node]
        if isinstance(node, list)
        else next(gradients)
        for name, node in nodes.items()
    }
