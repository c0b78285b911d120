"""Mixup: images of a batch blended with images of the same batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curlfx.errors import DataError


@dataclass(frozen=True)
class Blend:
    """Labels of blended images.

    Attributes:
        share: lam, the share of an image itself, in [0, 1].
        labels: ``(B,)`` or ``(B, K)``: those of the images that each is blended with.
    """

    share: float
    labels: Tensor


@dataclass(frozen=True)
class Mix:
    """How one batch is blended.

    Attributes:
        share: lam, the share of an image itself, in [0, 1].
        order: ``(B,)``: the image with which each is blended.
    """

    share: float
    order: Tensor

    def images(self, images: Tensor) -> Tensor:
        """``lam * images + (1 - lam) * images[order]``. Raises: DataError for images that are not floats."""
        if not images.is_floating_point():
            raise DataError(f"images are {images.dtype}: mixup wants floats; convert them in the loader, or mixup=0")
        return self.share * images + (1.0 - self.share) * self.partners(images)

    def partners(self, values: Tensor) -> Tensor:
        """``values[order]``, whatever their device."""
        return values[self.order.to(values.device)]

    def blend(self, labels: Tensor, rows: slice = slice(None)) -> Blend:
        """What the loss of some images needs to know, from the labels of all."""
        return Blend(self.share, self.partners(labels)[rows])

    def dominant(self, labels: Tensor) -> Tensor:
        """The labels with the greater share: what counts as the right answer for a blended image."""
        return labels if self.share >= 0.5 else self.partners(labels)


class Mixup:
    """Draws the blends of one epoch, which follow from ``seed`` and ``epoch`` alone.

    Args:
        alpha: a of ``lam ~ Beta(a, a)``, above 0.

    Source: Zhang et al., arXiv:1710.09412; lam once per batch as in CURL, arXiv:1911.08114.
    """

    def __init__(self, alpha: float, seed: int, epoch: int) -> None:
        self._alpha = alpha
        self._generator = np.random.default_rng((seed, epoch, 1))

    def draw(self, count: int) -> Mix:
        """The blend of the next batch, of ``count`` images."""
        share = float(self._generator.beta(self._alpha, self._alpha))
        return Mix(share, torch.from_numpy(self._generator.permutation(count)))
