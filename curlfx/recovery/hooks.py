"""What else may take part in a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch.optim import Optimizer


class Hooks(Protocol):
    """Called by the training loop; may change the network between epochs."""

    def start(self, optimizer: Optimizer) -> None:
        """The optimiser is made; no checkpoint has been taken up yet."""

    def after_epoch(self, epoch: int) -> bool:
        """Epoch ``epoch``, from 1, is trained and not yet judged; whether parameters were replaced by others."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, in plain types and tensors."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up such a state; the network's and the optimiser's come after it."""

    def finish(self) -> None:
        """The training is over, or was given up; let go of the optimiser."""
