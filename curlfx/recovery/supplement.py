"""What a training can do beside descending on its own loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Supplement:
    """Says what to add to a training; this one adds nothing, subclasses override what they need.

    What it does must follow from ``described`` and the epoch, and what it changes must be in the state dict of the
    network or of the optimizer, so that a resumed training ends in the same bits.

    Attributes:
        asks_teacher: Whether the teacher looks at every batch even where its logits do not count.
        undecayed: Names of parameters without weight decay.
        described: Settings, as plain values; a checkpoint made with others is refused.
    """

    asks_teacher: bool = False
    undecayed: Collection[str] = frozenset()
    described: Mapping[str, Any] = {}

    def before_epoch(self, module: nn.Module, epoch: int) -> None:
        """Called in training mode before the first batch of an epoch, numbered from 0."""

    def after_epoch(self, module: nn.Module, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Called in eval mode after the last batch of an epoch, before it is judged and saved."""

    def taught(self, output: Any) -> object:
        """What `loss` needs of the teacher's output for a batch; called in inference mode."""

    def loss(self, output: Any, taught: Any) -> Tensor | None:
        """What is added to the loss of a batch, from the network's output and what was taken from the teacher's."""
