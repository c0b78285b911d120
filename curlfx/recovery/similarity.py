"""Similarity-preserving distillation: which images of a batch are alike, for the student and for the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from curlfx.errors import DataError
from curlfx.recovery.loss import precise
from curlfx.recovery.processes import ALONE, Processes


def similarities(features: Tensor) -> Tensor:
    """How alike the images of a batch are, ``(B, B)``, float32 or better: ``Q Qᵀ`` with rows of length 1.

    Never under autocast: sums over all features leave the range of half precision.

    Shapes: features ``(B, …)``; Q is ``(B, all others)``, in any order.
    Source: Tung & Mori, arXiv:1907.09682, section 3.1.
    """
    (found,) = all_similarities([features], ALONE)
    return found


def all_similarities(features: Sequence[Tensor], group: Processes) -> list[Tensor]:
    """The same for several layers ``(b, …)``, of whose batch every process has a part: its rows of each, ``(b, B)``.

    Over several processes every feature travels to all of them.
    """
    kind = features[0].device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        if group.count == 1:
            products = [_Gram.apply(precise(_rows(one))) for one in features]
        else:
            rows = [precise(one.flatten(1)) for one in features]  # in an order that is the same for all processes
            products = [own @ whole.mT for own, whole in zip(rows, group.joined_features(rows), strict=True)]
        return [functional.normalize(one, dim=1) for one in products]


class _Gram(torch.autograd.Function):
    """``Q Qᵀ``, whose gradient takes one product instead of the two that autograd would make of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Shapes: rows ``(B, F)``, result ``(B, B)``."""
        ctx.save_for_backward(rows)
        return rows @ rows.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Shapes: gradient ``(B, B)``, result ``(B, F)``."""
        rows: Tensor
        (rows,) = ctx.saved_tensors
        found: Tensor = (gradient + gradient.mT) @ rows
        return found


def _rows(features: Tensor) -> Tensor:
    """One row per image, its features in the order in which they lie in memory: nothing is copied."""
    order = sorted(range(1, features.dim()), key=features.stride, reverse=True)
    return features.permute(0, *order).flatten(1)


def similarity_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of ``‖G_teacher - G_student‖² / B²`` for the `similarities` G of the same images, a scalar.

    Over the rows ``(b, B)`` of a process it is the mean over these.

    Raises: DataError for batches of different sizes.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape != theirs.shape:
            raise DataError(f"similarities of {len(ours)} and of {len(theirs)} images: want those of the same batch")
        losses.append((theirs - ours).square().mean())
    return torch.stack(losses).mean()
