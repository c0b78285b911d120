"""The part ``gradual``: channels that go while the network is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from curlfx.errors import ConfigError
from curlfx.gradual.schedule import Schedule
from curlfx.planning.target import Amount
from curlfx.run.config.recovery import RecoveryConfig
from curlfx.run.config.section import Count, Natural, Section


class GradualConfig(Section):
    """Channels go while the network is trained, as `curlfx.gradual.Schedule` says; training replaces the recovery.

    Attributes:
        interval: Epochs from one step to the next; ``auto`` makes ten steps; 0 prunes after the training instead.
        last: Last epoch after which channels may go; none takes three quarters of ``train.epochs``.
        amount: Coupled channels per step, or a share of all that can go; none goes an equal part of the way to the
            target at every step.
        floor: Share of every group, rounded up, that always stays.
        physical: Slim the network at every step, so that the rest of the training is cheaper; else zero weights.
    """

    interval: Natural | Literal["auto"] = 0
    last: Count | None = None
    amount: Amount | None = None
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    physical: bool = False

    @field_validator("amount")
    @classmethod
    def _some(cls, value: Amount | None) -> Amount | None:
        try:
            Schedule(1, 1, value, {"macs": "50%"})
        except ConfigError as error:
            raise ValueError(str(error).partition(": ")[2]) from error
        return value


def without_teacher(recovery: RecoveryConfig) -> None:
    """Refuse a recovery with a teacher. Raises: ValueError."""
    enlarged, none = recovery.overparam, "recovery.overparam.distillation=0 and recovery.overparam.similarity=0"
    wrong = {
        "recovery.epochs=0 or recovery.distillation=0": recovery.epochs and recovery.distillation,
        "recovery.refine.epochs=0": recovery.refine.epochs,
        f"recovery.overparam.epochs=0, or {none}": enlarged.epochs
        and (enlarged.distillation or enlarged.similarity != 0),
    }
    for wanted, found in wrong.items():
        if found:
            raise ValueError(
                "the dense network of a training that prunes is the slim one with zeros, which can teach it nothing; "
                f"want {wanted}"
            )
