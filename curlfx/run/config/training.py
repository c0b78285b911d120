"""What every training is asked for: the part ``train``, and what the other trainings begin with."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Self

from pydantic import Field, model_validator

from curlfx.errors import ConfigError
from curlfx.recovery.settings import Amp, MemoryFormat, TrainSettings
from curlfx.run.config.section import Count, Natural, Positive, Section


class TrainingConfig(Section):
    """One training: stochastic gradient descent with momentum, linear warm-up and a cosine to zero.

    Attributes: as in `curlfx.recovery.settings.TrainSettings`.
    """

    epochs: Natural = 8
    batch_size: Count = 64
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    decay_vectors: bool = False
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip_gradient: Positive | None = None
    amp: Amp = "auto"
    memory_format: MemoryFormat = "auto"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            self.settings(seed=0, device="auto")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def settings(self, *, seed: int, device: str) -> TrainSettings:
        """The same for `curlfx.recovery`. Raises: ConfigError for values that do not go together."""
        names = {field.name for field in fields(TrainSettings)}
        return TrainSettings(**self.model_dump(include=names), seed=seed, device=device)
