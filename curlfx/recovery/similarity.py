"""Similarity-preserving distillation: which images of a batch are alike, for the student and for the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from curlfx.errors import DataError


def similarities(features: Tensor) -> Tensor:
    """How alike the images of a batch are, ``(B, B)`` float32: ``Q Qᵀ`` with rows of length 1.

    Never under autocast: sums over all features leave the range of half precision.

    Shapes: features ``(B, …)``; Q is ``(B, all others)``.
    Source: Tung & Mori, arXiv:1907.09682, section 3.1.
    """
    flat = features.flatten(1).float()
    kind = flat.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return functional.normalize(flat @ flat.mT, dim=1)


def similarity_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of ``‖G_teacher - G_student‖² / B²`` for the `similarities` G of the same images, a scalar.

    Raises: DataError for batches of different sizes.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape != theirs.shape:
            raise DataError(f"similarities of {len(ours)} and of {len(theirs)} images: want those of the same batch")
        losses.append((theirs - ours).square().mean())
    return torch.stack(losses).mean()
