"""Loss and accuracy of an epoch as it runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curlfx.recovery.processes import ALONE, Processes


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

    def flush(self, group: Processes = ALONE) -> int | None:
        """Bring the sums up to date; returns the step of the epoch, from 1, of the first loss that is not finite.

        Args:
            group: Processes that have a part of every batch each; the sums are over all parts.
        """
        if not self._counts:
            return None
        losses = torch.stack(self._losses).double()
        counts = torch.tensor(self._counts, dtype=torch.float64).to(losses.device)
        table = torch.stack([losses * counts[:, 0], torch.stack(self._right).double(), *counts.T], dim=1)
        group.add_up([table])
        steps = table.tolist()
        for position, (loss, *_) in enumerate(steps, start=1):
            if not math.isfinite(loss):
                return self._steps + position
        for loss, right, images, answers in steps:
            self._loss += loss
            self._hits += int(right)
            self._images += int(images)
            self._answers += int(answers)
        self._steps += len(steps)
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
