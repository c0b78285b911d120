"""Relevance of element-wise ops: activations hand it on, sums share it, gates get none."""

from __future__ import annotations

import torch
from torch import Tensor

from curlfx.lrp.call import Call, Parts
from curlfx.lrp.distribute import proportional
from curlfx.lrp.gating import gate_among


def unchanged(call: Call, relevance: Tensor) -> Parts:
    """Activations, casts, normalisations, scaling by constants: every element keeps what it gets.

    Shapes: the input's broadcasts to the output's; where it is smaller, its element gets the sum.
    """
    name = call.operands()[0]
    return {name: _fitted(relevance, call[name])}


def added(call: Call, relevance: Tensor) -> Parts:
    """``add``, ``sub`` and ``rsub``: each side in proportion to what it adds; a constant side, a bias, gets nothing.

    Source: the epsilon rule of Bach et al. 2015 with a bound in place of epsilon, see `proportional`.
    """
    live = call.operands()
    if len(live) == 1:
        return unchanged(call, relevance)
    op = str(call.node.target)
    scale = call["alpha"] if "alpha" in call.arguments else 1
    summands = {"self": call["self"], "other": call["other"]}
    scaled = "self" if "rsub" in op else "other"
    summands[scaled] = summands[scaled] * (-scale if "sub" in op else scale)
    parts = proportional(call, torch.add, list(summands.values()), relevance)
    return dict(zip(summands, parts, strict=True))


def multiplied(call: Call, relevance: Tensor) -> Parts:
    """``mul``: a gate gets nothing (see `gate_among`), the other factor all; of two equal factors each gets half.

    A constant factor is a weight without a sum: it gets nothing.
    """
    live = call.operands()
    if len(live) == 2:
        gate = gate_among([call.node_of(name) for name in live], call.is_live)
        live = [name for name in live if call.node_of(name) is not gate] or live
    return {name: _fitted(relevance / len(live), call[name]) for name in live}


def divided(call: Call, relevance: Tensor) -> Parts:
    """``div``: the dividend gets all; a divisor is a gate, unless it alone depends on the images."""
    return unchanged(call, relevance)


def halved(call: Call, relevance: Tensor) -> Parts:
    """``glu``: the first half of the axis gets all, the second is its gate."""
    axis = call["dim"]
    return {"self": torch.cat([relevance, torch.zeros_like(relevance)], axis)}


def _fitted(relevance: Tensor, x: Tensor) -> Tensor:
    """Relevance summed over what was broadcast."""
    return relevance.sum_to_size(x.shape).to(x.dtype)
