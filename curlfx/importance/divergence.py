"""Divergences: how far predictions moved, for every kind of head."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from curlfx.errors import ConfigError, ModelError, did_you_mean

AUTO = "auto"


class Divergence(abc.ABC):
    """A distance of predictions, for logits ``(N, C, *S)``: N images, C classes, S pixels if there are any.

    Attributes:
        name: What it is called.
        least: Fewest classes that mean anything.
    """

    name: ClassVar[str]
    least: ClassVar[int] = 1

    def check(self, logits: Tensor, images: int) -> None:
        """Raises: ModelError when the output of the intact network is nothing that this divergence can look at."""
        if logits.ndim < 2 or len(logits) != images or logits.shape[1] < self.least:
            raise ModelError(
                f"importance 'kl': the output is {tuple(logits.shape)} for {images} images: want (images, classes, …) "
                f"with at least {self.least} classes for divergence '{self.name}'; use importance 'magnitude' for "
                "other networks"
            )
        if not logits.is_floating_point():
            raise ModelError(f"importance 'kl': the output is {logits.dtype}: want logits in floating point")
        if not bool(torch.isfinite(logits).all()):
            raise ModelError("importance 'kl': the network's own output has NaN or infinite values; check its weights")

    def sums(self, masked: Tensor, intact: Tensor) -> Tensor:
        """Sum over images of the divergence of several masked networks from the intact one, the mean over pixels.

        Shapes: masked ``(K, N, C, *S)``; intact ``(N, C, *S)``; result ``(K,)`` in float64.
        """
        each = self.each(masked.double(), intact.double())
        return each.reshape(*each.shape[:2], -1).mean(2).sum(1)

    @abc.abstractmethod
    def each(self, masked: Tensor, intact: Tensor) -> Tensor:
        """The divergence of every image and pixel. Shapes: as `sums`; result ``(K, N, *S)``."""

    def direction(self, intact: Tensor, noise: Tensor) -> Tensor:
        """A random ``v`` whose covariance is the Hessian of the divergence in the masked logits, at the intact ones.

        So ``½ E (J·v)²`` is the divergence to second order when logits move by J, pixels averaged.
        Shapes: intact, noise (random signs) and result ``(N, C, *S)``.
        """
        pixels = intact[0, 0].numel()
        return self._direction(intact, noise) / math.sqrt(pixels)

    @abc.abstractmethod
    def _direction(self, intact: Tensor, noise: Tensor) -> Tensor:
        """As `direction`, for the sum over pixels."""


class Softmax(Divergence):
    """``KL(softmax(masked) || softmax(intact))``, in nats. Source: CURL (arXiv:1911.08114), importance score."""

    name = "softmax"
    least = 2

    def each(self, masked: Tensor, intact: Tensor) -> Tensor:
        """The divergence of every image and pixel."""
        log_p, log_q = masked.log_softmax(2), intact.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(2)

    def _direction(self, intact: Tensor, noise: Tensor) -> Tensor:
        p = intact.softmax(1)
        spread = p.sqrt() * noise
        return spread - p * spread.sum(1, keepdim=True)


class Bernoulli(Divergence):
    """The sum over labels of ``KL(Bernoulli(σ(masked)) || Bernoulli(σ(intact)))``, in nats: multi-label heads."""

    name = "bernoulli"

    def each(self, masked: Tensor, intact: Tensor) -> Tensor:
        """The divergence of every image and pixel."""
        yes = functional.logsigmoid(masked) - functional.logsigmoid(intact)
        no = functional.logsigmoid(-masked) - functional.logsigmoid(-intact)
        return (masked.sigmoid() * yes + (-masked).sigmoid() * no).sum(2)

    def _direction(self, intact: Tensor, noise: Tensor) -> Tensor:
        return (intact.sigmoid() * (-intact).sigmoid()).sqrt() * noise


class Embedding(Divergence):
    """One minus the cosine of embeddings, ``½‖masked/‖masked‖ - intact/‖intact‖‖²``, in [0, 2]: features, retrieval.

    Up to a factor that all channels share it is the KL divergence of two von Mises–Fisher distributions, which a
    cosine classifier stands for, with these directions and the same concentration.
    """

    name = "embedding"

    def each(self, masked: Tensor, intact: Tensor) -> Tensor:
        """The divergence of every image and pixel."""
        gap = functional.normalize(masked, dim=2) - functional.normalize(intact, dim=1)
        return 0.5 * gap.square().sum(2)

    def _direction(self, intact: Tensor, noise: Tensor) -> Tensor:
        unit = functional.normalize(intact, dim=1)
        across = noise - unit * (unit * noise).sum(1, keepdim=True)
        norm: Tensor = torch.linalg.vector_norm(intact, dim=1, keepdim=True)
        return across / norm.clamp_min(torch.finfo(intact.dtype).tiny)


DIVERGENCES: Mapping[str, Divergence] = {each.name: each for each in (Softmax(), Bernoulli(), Embedding())}
"""The divergences by name."""


def check_divergence(name: str) -> None:
    """Raises: ConfigError for a divergence that does not exist."""
    known = (AUTO, *DIVERGENCES)
    if name not in known:
        raise ConfigError(f"divergence '{name}': want one of {', '.join(known)}{did_you_mean(name, known)}")
