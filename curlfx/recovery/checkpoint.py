"""Checkpoints: one file per training, replaced whole after every epoch, loadable without unpickling code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curlfx.errors import ConfigError, WeightsError
from curlfx.files import write_bytes
from curlfx.recovery.settings import TrainSettings
from curlfx.recovery.supplement import NOTHING

FORMAT = 1


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        epoch: From 1.
        loss: Mean over the epoch's images.
        accuracy: On the training images as the loop met them (augmented, weights in motion), in [0, 1].
        validation: Accuracy in eval mode on the validation loader after the epoch; None without one.
        lr: Learning rate of the last step.
        seconds: Wall-clock time, validation included.
    """

    epoch: int
    loss: float
    accuracy: float
    validation: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """A training after some of its epochs. The learning rate and all random numbers follow from the epoch and the seed.

    Attributes:
        epoch: Finished epochs.
        steps_per_epoch: Of the loader it was made with.
        settings: Of the training.
        model: State dict.
        optimizer: State dict.
        average: State of the weight average; None without one.
        history: One record per finished epoch.
        supplement: What the training did beside, as `curlfx.recovery.supplement.Supplement.described` says it.
        state: Of that supplement.
    """

    epoch: int
    steps_per_epoch: int
    settings: TrainSettings
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    history: tuple[EpochRecord, ...]
    supplement: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to ``path``, whole or not at all. Raises: OutputError."""
        content = {
            "format": FORMAT,
            "epoch": self.epoch,
            "steps_per_epoch": self.steps_per_epoch,
            "settings": asdict(self.settings),
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
            "history": [asdict(record) for record in self.history],
            "supplement": dict(self.supplement),
            "state": dict(self.state),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_bytes(path, buffer.getbuffer())

    @staticmethod
    def load(path: Path) -> Checkpoint:
        """Read a file that `save` wrote; runs no code from it. Raises: WeightsError when it is anything else."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["format"] != FORMAT:
                raise WeightsError(f"{path}: checkpoint format {content['format']}; this version reads {FORMAT}")
            return Checkpoint(
                epoch=int(content["epoch"]),
                steps_per_epoch=int(content["steps_per_epoch"]),
                settings=TrainSettings(**content["settings"]),
                model=dict(content["model"]),
                optimizer=dict(content["optimizer"]),
                average=content["average"],
                history=tuple(EpochRecord(**record) for record in content["history"]),
                supplement=dict(content.get("supplement", {})),
                state=dict(content.get("state", {})),
            )
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path}: not a checkpoint of curlfx ({reason}); delete it to start afresh") from error

    def check_resumable(
        self, path: Path, settings: TrainSettings, steps_per_epoch: int, supplement: Mapping[str, Any] = NOTHING
    ) -> None:
        """Refuse to go on under other settings: the result would be that of neither. Raises: ConfigError."""
        changed = self.settings.differences(settings)
        if changed:
            name = changed[0]
            was, now = getattr(self.settings, name), getattr(settings, name)
            raise ConfigError(f"{path} was made with {name}={was}, not {now}; use the same settings or delete it")
        for name in dict.fromkeys([*self.supplement, *supplement]):
            was, now = self.supplement.get(name), supplement.get(name)
            if was != now:
                raise ConfigError(f"{path} was made with {name}={was}, not {now}; use the same settings or delete it")
        if self.steps_per_epoch != steps_per_epoch:
            raise ConfigError(
                f"{path} was made with {self.steps_per_epoch} batches per epoch, the loader has {steps_per_epoch}; "
                "use the same data or delete it"
            )
