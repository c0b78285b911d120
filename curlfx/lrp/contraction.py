"""Relevance of sums of products: convolutions, linear layers, matrix products, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from curlfx.errors import ModelError
from curlfx.lrp.call import Call, Parts
from curlfx.lrp.distribute import Map, alpha_beta, epsilon
from curlfx.lrp.gating import gate_among

Product = Callable[[Tensor, Tensor], Tensor]


def layer(call: Call, relevance: Tensor) -> Parts:
    """Convolutions (transposed ones too) and linear layers: the input gets all, weights nothing.

    That holds for weights that the network computes (dynamic convolutions), too. By the epsilon rule a bias gets its
    share, by the alpha-beta rule nothing.

    Shapes: those of the op; the result has the shape of ``input``.
    """
    _require(call, "input")
    weight, bias = call["weight"], call["bias"]
    if call.settings.rule == "epsilon" and bias is not None and not call.settings.reach:
        inputs = [call["input"], bias]
        x, b = epsilon(lambda x, b: call.run(input=x, bias=b), inputs, relevance, call.settings.epsilon)
        return {"input": x, "bias": b}
    return {
        "input": _through(call, relevance, call["input"], weight, lambda x, w: call.run(input=x, weight=w, bias=None))
    }


def addmm(call: Call, relevance: Tensor) -> Parts:
    """``beta · self + alpha · a b``: as a product of a and b; ``self`` is a bias, and gets nothing.

    Raises: ModelError where ``self`` depends on the images.
    """
    first, second = ("batch1", "batch2") if "batch1" in call.arguments else ("mat1", "mat2")
    if call.carries("self"):
        _refuse(call, "what it adds depends on the images")
    bare = {"beta": 0, "alpha": 1}
    return _product(
        call, relevance, first, second, lambda a, b: call.run(**{first: a, second: b, **bare}), call["alpha"]
    )


def matmul(call: Call, relevance: Tensor) -> Parts:
    """Matrix products. Where both sides depend on the images, a gate (attention probabilities) gets nothing, the
    values all; of two values each gets half, the other one taken as weights.

    Shapes: ``(..., n, k)`` and ``(..., k, m)``.
    """
    first, second = list(call.nodes())
    return _product(call, relevance, first, second, lambda a, b: call.run(**{first: a, second: b}))


def einsum(call: Call, relevance: Tensor) -> Parts:
    """As `matmul`, for one or two operands.

    Raises: ModelError for more of them.
    """
    operands = call["tensors"]
    nodes = call.nodes()["tensors"]
    assert isinstance(nodes, list)  # noqa: S101 - by the schema
    if len(operands) == 1:
        parts: list[Tensor | None] = [_weighted(call, relevance, operands[0], lambda x: call.run(tensors=[x]))]
        return {"tensors": parts}
    if len(operands) != 2:
        _refuse(call, f"it multiplies {len(operands)} tensors")
    live = [call.is_live(node) for node in nodes]
    gate = gate_among([node for node in nodes if node is not None], call.is_live) if all(live) else None
    carriers = [place for place in (0, 1) if live[place] and (gate is None or nodes[place] is not gate)]
    parts = [None, None]
    for place in carriers:
        weight = operands[1 - place]

        def product(x: Tensor, w: Tensor, place: int = place) -> Tensor:
            result: Tensor = call.run(tensors=[x, w] if place == 0 else [w, x])
            return result

        parts[place] = _through(call, relevance / len(carriers), operands[place], weight, product)
    return {"tensors": parts}


def attention(call: Call, relevance: Tensor) -> Parts:
    """``scaled_dot_product_attention``: the values get all, the probabilities are constants.

    Shapes: value ``(..., T, d)``.
    Source: Ali et al., XAI for Transformers (arXiv:2202.07304), section 3, for probabilities as constants.
    """
    _require(call, "value")
    return {"value": _weighted(call, relevance, call["value"], lambda value: call.run(value=value))}


def _product(call: Call, relevance: Tensor, first: str, second: str, product: Product, scale: float = 1) -> Parts:
    """Relevance of two factors; the output is ``scale`` times their product."""
    live = [name for name in (first, second) if call.carries(name)]
    if len(live) == 2:
        gate = gate_among([call.node_of(name) for name in live], call.is_live)
        live = [name for name in live if call.node_of(name) is not gate] or live
    parts = {}
    for name in live:
        other = second if name == first else first
        swapped = product if name == first else lambda x, w: product(w, x)
        parts[name] = _through(call, relevance / len(live), call[name], call[other] * scale, swapped)
    return parts


def _through(call: Call, relevance: Tensor, x: Tensor, weight: Tensor, product: Product) -> Tensor:
    """Relevance of ``x``, of which the output is a product with weights of both signs."""
    settings = call.settings
    if settings.reach:
        return torch.ones_like(x)
    if settings.rule == "epsilon":
        return epsilon(lambda x: product(x, weight), [x], relevance, settings.epsilon)[0]
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    return alpha_beta(call, lambda x: product(x, positive), lambda x: product(x, negative), x, relevance)


def _weighted(call: Call, relevance: Tensor, x: Tensor, function: Map) -> Tensor:
    """Likewise through a map whose weights are all positive."""
    settings = call.settings
    if settings.reach:
        return torch.ones_like(x)
    if settings.rule == "epsilon":
        return epsilon(function, [x], relevance, settings.epsilon)[0]
    return alpha_beta(call, function, None, x, relevance)


def _require(call: Call, name: str) -> None:
    if not call.carries(name):
        _refuse(call, f"its {name} does not depend on the images, and something else does")


def _refuse(call: Call, reason: str) -> NoReturn:
    raise ModelError(f"{call.place}: {reason}, and no rule says who gets its relevance; pass rules={{…}}")
