"""Three factors in place of a weight: their shapes, the ways to start them, and their product."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from curlfx.passes.linear_layers import Kind, Layout

Initialisation = Literal["semi_orthogonal", "pinv", "noise_pad"]
INITIALISATIONS: tuple[str, ...] = get_args(Initialisation)
SUFFIXES = ("_A", "_M", "_B")
"""What follows the name of a weight in those of its factors."""
_NOISE = 0.1
One = TypeVar("One")


class Factors(NamedTuple, Generic[One]):
    """``W = B M A``: a 1 × 1 layer, one with the kernel of the weight, and a 1 × 1 layer; or something about each.

    Shapes, for i and o channels per group, P = r·i, Q = r·o, in the layout of a convolution: A ``(G·P, i, 1, …)``, M
    ``(G·Q, P, *kernel)``, B ``(G·o, Q, 1, …)``.
    """

    a: One
    m: One
    b: One


def factor_names(weight: str) -> Factors[str]:
    """Names of the factors of a weight."""
    return Factors(*(weight + suffix for suffix in SUFFIXES))


def factorise(weight: Tensor, layout: Layout, rate: int, how: Initialisation, seed: Sequence[int]) -> Factors[Tensor]:
    """Factors whose product is ``weight``, in its type and on its device; computed in float64.

    - ``semi_orthogonal``: A with orthonormal columns, B with orthonormal rows, at random, and M = Bᵀ W Aᵀ.
    - ``pinv``: A and B at random, and M = B⁺ W A⁺.
    - ``noise_pad``: A = [I; noise], B = [I, noise], M = [[W, 0], [0, 0]].

    Source: Qian et al., arXiv:2204.11444, which does not say how it starts; these are ours.
    """
    wanted = layout.blocks(weight.detach().double().cpu())  # (G, K, o, i)
    groups, _, out, into = wanted.shape
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
    if how == "noise_pad":
        a, b = _noise_padded(groups, rate * into, into, generator), _noise_padded(groups, rate * out, out, generator)
        m = torch.zeros(*wanted.shape[:2], rate * out, rate * into, dtype=torch.float64)
        m[..., :out, :into] = wanted
    else:
        a, b = (
            torch.randn(groups, rate * size, size, generator=generator, dtype=torch.float64) for size in (into, out)
        )
        if how == "semi_orthogonal":
            a, b = torch.linalg.qr(a).Q, torch.linalg.qr(b).Q
            m = b[:, None] @ wanted @ a.mT[:, None]
        else:
            a, b = a / (rate * into) ** 0.5, b / (rate * out) ** 0.5
            m = torch.linalg.pinv(b.mT)[:, None] @ wanted @ torch.linalg.pinv(a)[:, None]
    ones = [1] * len(layout.kernel(weight))
    thin = layout.pointwise
    parts = (thin.weight(a[:, None], ones), layout.weight(m, layout.kernel(weight)), thin.weight(b.mT[:, None], ones))
    return Factors(*(part.to(weight.device, weight.dtype).contiguous() for part in parts))


def compose(a: Tensor, m: Tensor, b: Tensor, kind: Kind, groups: int) -> Tensor:
    """The weight ``B M A``, differentiable, in the order that takes fewer multiplications; never under autocast.

    Shapes: as in `Factors`; the weight as `Layout` says.
    """
    layout = Layout(kind, groups)
    with _exact(a):
        right, middle, left = layout.pointwise.blocks(a), layout.blocks(m), layout.pointwise.blocks(b)
        (q, p), i, o = middle.shape[2:], right.shape[3], left.shape[2]
        first_right = q * p * i + o * q * i <= o * q * p + o * p * i
        product = left @ (middle @ right) if first_right else (left @ middle) @ right
        return layout.weight(product, layout.kernel(m))


def _exact(tensor: Tensor) -> AbstractContextManager[object]:
    """No autocast: weights are multiplied in their own type."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _noise_padded(groups: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """``[I; noise]``, ``(G, rows, columns)``."""
    noise = _NOISE * torch.randn(groups, rows - columns, columns, generator=generator, dtype=torch.float64)
    return torch.cat([torch.eye(columns, dtype=torch.float64).expand(groups, -1, -1), noise], dim=1)
