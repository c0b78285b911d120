"""What a training can do beside descending on its own loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Supplement:
    """Says what to add to a training; this one adds nothing, subclasses override what they need.

    What it does must follow from ``described``, the epoch and ``state``, and what it changes must be in the state dict
    of the network or of the optimizer, so that a resumed training ends in the same bits.

    Attributes:
        asks_teacher: Whether the teacher looks at every batch even where its logits do not count.
        undecayed: Names of parameters without weight decay.
        replaces: Whether weights change otherwise than by the optimizer, so that an average of them means nothing.
        described: Settings, as plain values; a checkpoint made with others is refused.
    """

    asks_teacher: bool = False
    undecayed: Collection[str] = frozenset()
    replaces: bool = False
    described: Mapping[str, Any] = NOTHING

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is made; no checkpoint has been taken up yet."""

    def before_epoch(self, module: nn.Module, epoch: int) -> None:
        """Called in training mode before the first batch of an epoch, numbered from 0."""

    def after_epoch(self, module: nn.Module, epoch: int, optimizer: torch.optim.Optimizer) -> bool:  # noqa: ARG002
        """Called in eval mode after the last batch, before the epoch is judged; whether there are new parameters."""
        return False

    def taught(self, output: Any) -> object:
        """What `loss` needs of the teacher's output for a batch; called in inference mode."""

    def loss(self, output: Any, taught: Any) -> Tensor | None:
        """What is added to the loss of a batch, from the network's output and what was taken from the teacher's."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint needs, in plain types and tensors."""
        return NOTHING

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up such a state; the network's and the optimizer's come after it."""

    def finish(self) -> None:
        """The training is over, or was given up; let go of the optimizer."""
