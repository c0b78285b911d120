"""Relevance of ops that pick or move elements: it goes back to where they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.lrp.call import Call, Flow, Parts
from curlfx.lrp.distribute import total_where

_FILLS = ("self", "other", "value")
"""Arguments that are a number, or a tensor, to fill in."""


def routed(call: Call, relevance: Flow) -> Parts:
    """``VJP(R)``: views, slices, concatenation, max pooling, maxima; the winner takes all.

    Overlapping windows add up. What came from a constant (a class token) stays there.

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


def filled(call: Call, relevance: Tensor) -> Parts:
    """As `routed`, for ops that fill in numbers (padding, masks); ``call.idle`` has the relevance of these.

    They are found by the op on ones, with zeros to fill in.
    """
    nodes = call.nodes()
    ones = {name: torch.ones_like(call[name]) for name in nodes}
    zeros = {name: _zero(call[name]) for name in _FILLS if name in call.arguments and name not in nodes}
    call.idle += total_where(call.run(**ones, **zeros) == 0, relevance)
    return routed(call, relevance)


def _zero(number: Any) -> Any:
    """Of the kind of ``number``; None, which padding by copies has, stays."""
    return None if number is None else torch.zeros_like(number) if isinstance(number, Tensor) else 0
