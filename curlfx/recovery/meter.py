"""Loss and accuracy of an epoch as it runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Meter:
    """Sums over an epoch; the newest stay on the device until someone looks."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []
        self._counts: list[tuple[int, int]] = []
        self._loss, self._hits, self._images, self._answers, self._steps = 0.0, 0, 0, 0, 0

    def add(self, loss: Tensor, right: Tensor, answers: int, images: int) -> None:
        """Take in one step: its mean loss, how many of ``answers`` were right, over how many ``images``."""
        self._losses.append(loss.detach())
        self._right.append(right)
        self._counts.append((images, answers))

    def flush(self) -> int | None:
        """Bring the sums up to date; returns the step of the epoch, from 1, of the first loss that is not finite."""
        if not self._counts:
            return None
        losses = torch.stack(self._losses).tolist()
        for position, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                return self._steps + position
        for loss, (images, answers) in zip(losses, self._counts, strict=True):
            self._loss += loss * images
            self._images += images
            self._answers += answers
        self._hits += int(torch.stack(self._right).sum())
        self._steps += len(losses)
        self._losses, self._right, self._counts = [], [], []
        return None

    @property
    def loss(self) -> float:
        """Mean over the images flushed so far."""
        return self._loss / max(1, self._images)

    @property
    def accuracy(self) -> float:
        """Share of right answers flushed so far, in [0, 1]."""
        return self._hits / max(1, self._answers)
