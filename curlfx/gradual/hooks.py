"""A pruner as part of the project's own training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from curlfx.gradual.pruner import GradualPruner, PruneStep


class PrunerHooks:
    """`curlfx.recovery.Hooks` that let a pruner step after every epoch.

    Args:
        pruner: Of the very network that is trained.
        told: Takes every step.
    """

    def __init__(self, pruner: GradualPruner, told: Callable[[PruneStep], None] = lambda _: None) -> None:
        self.pruner, self.told = pruner, told

    def start(self, optimizer: Optimizer) -> None:
        """Follow the optimiser."""
        self.pruner.attach(optimizer)

    def after_epoch(self, epoch: int) -> bool:
        """Step; whether the network has other parameters now."""
        found = self.pruner.step(epoch)
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
