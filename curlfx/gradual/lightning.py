"""A pruner in Lightning's Trainer. Wants the package ``lightning`` (or ``pytorch_lightning``)."""

from __future__ import annotations

from typing import Any

from curlfx.errors import UsageError
from curlfx.gradual.pruner import GradualPruner

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as missing:
        raise UsageError("curlfx.gradual.lightning wants Lightning; pip install lightning") from missing


class GradualPruning(Callback):  # type: ignore[misc] # its class is known only where it is installed
    """Lets a pruner step after every training epoch; its state goes into Lightning's checkpoints.

    A masked training resumes with ``ckpt_path`` as usual. Lightning loads weights before callbacks, so of a physical
    one give the pruner its part first: ``pruner.load_state_dict(checkpoint["callbacks"]["GradualPruning"])``.

    Args:
        pruner: Of the traced network whose module the `LightningModule` holds.
    """

    def __init__(self, pruner: GradualPruner) -> None:
        self.pruner = pruner

    @property
    def state_key(self) -> str:
        """Name in a checkpoint."""
        return "GradualPruning"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 — Lightning's signature
        """Follow the optimisers."""
        for optimizer in trainer.optimizers:
            self.pruner.attach(optimizer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Step."""
        self.pruner.step(trainer.current_epoch + 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Let go of the optimisers."""
        self.pruner.detach()

    def state_dict(self) -> dict[str, Any]:
        """What the pruner's checkpoint needs."""
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up, unless the caller has done so already."""
        if self.pruner.state_dict() != state_dict:
            self.pruner.load_state_dict(state_dict)
