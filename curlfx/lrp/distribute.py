"""How relevance is distributed among the summands of linear maps: the formulas, free of any op.

Everything has the form ``x · VJP(c)``: the transposed map of a convolution of whatever stride, padding, dilation and
groups is what differentiation of that very convolution gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curlfx.lrp.call import Call

Map = Callable[[Tensor], Tensor]
"""A linear map without a constant."""
RATIO = 1e3
"""Most that the sizes of the summands may add up to, as a multiple of their sum, before they count as cancelled."""
_ROUNDING = 16


def alpha_beta(call: Call, plus: Map, minus: Map | None, x: Tensor, relevance: Tensor) -> Tensor:
    """The alpha-beta rule, for inputs of both signs.

    ``z+ = W+x+ + W-x-`` and ``z- = W+x- + W-x+`` get ``alpha R`` and ``-beta R``, each of the four terms its share.
    Where z- is 0 they get R and nothing, where z+ is 0 nothing and R: a neuron of one sign would gain or lose. Where
    both are 0 it was the bias that spoke, and ``call.idle`` has its relevance.

    Args:
        call: Has alpha and beta.
        plus: ``x`` times the weights that are positive, the others taken as 0.
        minus: ``x`` times the weights that are negative, likewise; None where there are none.
        x: Input of the map.
        relevance: Of its output.

    Shapes: result as ``x``.
    Source: Bach et al. 2015 (doi:10.1371/journal.pone.0130140), equation 60, without biases.
    """
    up, down = x.clamp(min=0), x.clamp(max=0)
    signed = bool((down < 0).any())
    leaves = [part.detach().requires_grad_() for part in ((up, down) if signed else (up,))]
    raising, lowering = [(plus, leaves[0])], [] if minus is None else [(minus, leaves[0])]
    if signed:
        lowering.append((plus, leaves[1]))
        if minus is not None:
            raising.append((minus, leaves[1]))
    with torch.enable_grad():
        z = [_sum([function(leaf) for function, leaf in side]) for side in (raising, lowering) if side]
    values = [each.detach() for each in z] + [torch.zeros_like(relevance)] * (2 - len(z))
    coefficients = _alpha_beta_coefficients(call, values[0], values[1], relevance)
    gradients = torch.autograd.grad(z, leaves, coefficients[: len(z)])
    result = leaves[0].detach() * gradients[0]
    return result + leaves[1].detach() * gradients[1] if signed else result


def _alpha_beta_coefficients(call: Call, raising: Tensor, lowering: Tensor, relevance: Tensor) -> list[Tensor]:
    """What the summands of z+ and of z- are multiplied by."""
    limits = torch.finfo(relevance.dtype)
    least = (raising - lowering) * (_ROUNDING * limits.eps) + limits.tiny / limits.eps
    some = raising > least, -lowering > least
    call.idle += total_where(~(some[0] | some[1]), relevance)
    alpha = torch.where(some[1], call.settings.alpha, 1.0).to(relevance.dtype)
    beta = torch.where(some[0], -call.settings.beta, 1.0).to(relevance.dtype)
    return [
        torch.where(is_some, share * relevance / torch.where(is_some, z, 1), 0)
        for is_some, share, z in zip(some, (alpha, beta), (raising, lowering), strict=True)
    ]


def epsilon(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor, amount: float
) -> list[Tensor]:
    """The epsilon rule: ``x · VJP(R / (z + epsilon sign(z)))``, which keeps back ``epsilon / (|z| + epsilon)`` of R.

    A bias is one of the inputs: it gets its share.

    Shapes: results as the inputs, which ``function`` is linear in together.
    Source: Bach et al. 2015 (doi:10.1371/journal.pone.0130140), equation 58.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        z = function(*leaves)
    value = z.detach()
    gradients = torch.autograd.grad(z, leaves, relevance / (value + torch.where(value < 0, -amount, amount)))
    return [leaf.detach() * gradient for leaf, gradient in zip(leaves, gradients, strict=True)]


def proportional(
    call: Call, function: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor
) -> list[Tensor]:
    """Every summand its share of the sum: ``x · VJP(R / y)`` for sums, means, pooling and interpolation.

    Where summands cancel, so that ``sum |x| > RATIO |y|``, the sum is taken as that much larger, and what then is left
    of R goes to the summands by their size. Such elements are counted in ``call.clips``; relevance is conserved there
    too. A sum of nothing but zeros hands nothing on, as
    ``call.idle`` says.

    Args:
        call: Who counts.
        function: Linear in all inputs together.
        inputs: Its inputs.
        relevance: Of its output.

    Shapes: results as the inputs.
    """
    if call.settings.reach:
        return [torch.ones_like(x) for x in inputs]
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        y = function(*leaves)
    with torch.no_grad():
        size = function(*(leaf.abs() for leaf in leaves)).clamp(min=0)
        value = y.detach()
        least = size / RATIO
        cancelled = value.abs() < least
        sum_of = torch.where(cancelled, torch.where(value < 0, -least, least), value)
        share = _quotient(relevance, sum_of)
        rest = torch.where(cancelled, _quotient(relevance - share * value, size), 0)
    call.idle += total_where((size == 0) & (value == 0), relevance)
    clips = int((cancelled & (relevance != 0)).sum())
    gradients = torch.autograd.grad(y, leaves, share, retain_graph=clips > 0)
    parts = [leaf.detach() * gradient for leaf, gradient in zip(leaves, gradients, strict=True)]
    if clips:
        call.clips += clips
        gradients = torch.autograd.grad(y, leaves, rest)
        parts = [part + leaf.detach().abs() * g for part, leaf, g in zip(parts, leaves, gradients, strict=True)]
    return parts


def _sum(terms: Sequence[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, first)


def total_where(mask: Tensor, relevance: Tensor) -> float:
    """The relevance of the elements of a mask, in all."""
    return float(torch.where(mask, relevance, 0).sum(dtype=torch.float64))


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, 0 where b is 0."""
    zero = b == 0
    return torch.where(zero, 0, a / torch.where(zero, 1, b))
