"""A pruner in the Trainer of Hugging Face. Wants the packages ``transformers`` and ``accelerate``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from curlfx.errors import UsageError, WeightsError
from curlfx.files import write_bytes
from curlfx.gradual.pruner import GradualPruner

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import has_length
except ImportError as missing:
    raise UsageError("curlfx.gradual.huggingface wants transformers; pip install transformers accelerate") from missing

STATE = "gradual_pruning.json"


class GradualPruning(TrainerCallback):  # type: ignore[misc] # its class is known only where it is installed
    """Lets a pruner step after every training epoch; its state goes into every checkpoint folder.

    To resume, call `load` with the folder before ``trainer.train(resume_from_checkpoint=folder)``.

    Args:
        pruner: Of the traced network whose module the trained model holds.
    """

    def __init__(self, pruner: GradualPruner) -> None:
        self.pruner = pruner

    def load(self, folder: str | Path) -> None:
        """Take up the state in a checkpoint folder. Raises: WeightsError when there is none; ConfigError."""
        path = Path(folder) / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path}: cannot read the state of a pruning ({error})") from error
        self.pruner.load_state_dict(state)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,  # noqa: ARG002
        optimizer: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Follow the optimiser.

        Raises: UsageError when a training resumes of whose pruning nothing is known, would end with other weights than
            those that were pruned last, or does not know how long an epoch is.
        """
        if train_dataloader is not None and not has_length(train_dataloader):
            raise UsageError(
                "the training data has no length, so the Trainer does not count epochs: want a dataset with __len__"
            )
        if args.load_best_model_at_end:
            raise UsageError(
                "load_best_model_at_end=True may bring back weights from before a step, with channels that are gone by "
                "the end: want False"
            )
        if _finished(state) != self.pruner.epoch:
            raise UsageError(
                f"the training goes on after epoch {state.epoch or 0:g}, the pruning after epoch {self.pruner.epoch}: "
                "call load(folder) of this callback first"
            )
        if optimizer is not None:
            self.pruner.attach(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Step, unless the training stopped within the epoch."""
        if _finished(state) > self.pruner.epoch:
            self.pruner.step(_finished(state))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Leave the pruner's state beside the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_bytes(folder / STATE, json.dumps(self.pruner.state_dict()).encode())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Let go of the optimiser."""
        self.pruner.detach()


def _finished(state: Any) -> int:
    """Whole epochs of a training; the Trainer counts them in fractions that may be off by round-off."""
    return math.floor((state.epoch or 0) + 1e-6)
