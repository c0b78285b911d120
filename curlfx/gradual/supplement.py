"""A pruner as part of the project's own training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from curlfx.gradual.pruner import GradualPruner, PruneStep
from curlfx.recovery.supplement import Supplement


class Pruning(Supplement):
    """Lets a pruner step after every epoch of `curlfx.recovery.fit`.

    Args:
        pruner: Of the very network that is trained.
        told: Takes every step.
    """

    replaces = True
    described = MappingProxyType({"gradual": True})

    def __init__(self, pruner: GradualPruner, told: Callable[[PruneStep], None] = lambda _: None) -> None:
        self.pruner, self.told = pruner, told

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the optimiser."""
        self.pruner.attach(optimizer)

    def after_epoch(self, module: nn.Module, epoch: int, optimizer: torch.optim.Optimizer) -> bool:  # noqa: ARG002
        """Step; whether the network has other parameters now."""
        found = self.pruner.step(epoch + 1)
        if found is None:
            return False
        self.told(found)
        return self.pruner.physical

    def state(self) -> dict[str, Any]:
        """What the pruner's checkpoint needs."""
        return self.pruner.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.pruner.load_state_dict(state)

    def finish(self) -> None:
        """Let go of the optimiser."""
        self.pruner.detach()
