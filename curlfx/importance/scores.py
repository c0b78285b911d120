"""Scores: one number per coupled channel, higher stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from curlfx.coupling import Coupling, GroupId
from curlfx.errors import PlanError

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a criterion found.

    Attributes:
        criterion: Its name in `CRITERIA`.
        values: Scores per coupling group, ``(width,)`` each, finite, in the order of the group's channels.
        details: What the numbers depend on: seed, number of images.
    """

    criterion: str
    values: Mapping[GroupId, Values]
    details: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Copy what was given, so that nothing changes it later. Raises: PlanError naming a group with a bad score."""
        try:
            values = {group: np.array(scores, np.float64) for group, scores in self.values.items()}
        except OverflowError as cause:
            raise PlanError(f"scores: want numbers of at most {np.finfo(np.float64).max:.3g}") from cause
        for group, scores in values.items():
            if scores.ndim != 1:
                raise PlanError(f"scores['{group}']: found shape {scores.shape}: want one number per channel")
            bad = np.flatnonzero(~np.isfinite(scores))
            if bad.size:
                raise PlanError(
                    f"scores['{group}'][{bad[0]}] = {scores[bad[0]]} ({bad.size} of {scores.size} channels): want "
                    f"finite numbers; look for NaN or infinite values in the weights or the images ('{self.criterion}')"
                )
            scores.flags.writeable = False
        object.__setattr__(self, "values", MappingProxyType(values))
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))

    def check(self, coupling: Coupling) -> None:
        """Refuse scores that were made for other groups. Raises: PlanError naming the first group that differs."""
        for group in coupling.groups:
            scores = self.values.get(group.id)
            if scores is None:
                raise PlanError(f"scores lack group '{group.id}': they were made for another network")
            if scores.size != group.width:
                raise PlanError(f"scores['{group.id}']: found {scores.size} numbers, want {group.width}")
        extra = sorted(set(self.values) - {group.id for group in coupling.groups})
        if extra:
            raise PlanError(f"scores name group '{extra[0]}', which this network does not have")

    def to_json(self) -> str:
        """The scores as text; every number comes back the same from `from_json`."""
        document = {
            "version": 1,
            "criterion": self.criterion,
            "details": dict(self.details),
            "values": {group: scores.tolist() for group, scores in self.values.items()},
        }
        return json.dumps(document, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Scores:
        """Scores from `to_json`. Raises: PlanError naming what is wrong with the text."""
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError) as cause:  # ValueError: also a number of thousands of digits
            raise PlanError(f"scores: not JSON: {cause}") from cause
        if not isinstance(document, dict) or document.get("version") != 1:
            raise PlanError("scores: want an object with version 1, as curlfx writes it")
        criterion, details, values = (document.get(key) for key in ("criterion", "details", "values"))
        if not isinstance(criterion, str):
            raise PlanError(f"scores: criterion = {criterion!r}: want a name")
        if not isinstance(details, dict) or not all(type(number) is int for number in details.values()):
            raise PlanError("scores: details: want whole numbers by name")
        if not isinstance(values, dict):
            raise PlanError("scores: values: want a list of numbers per group")
        for group, numbers in values.items():
            if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
                raise PlanError(f"scores: values['{group}']: want a list of numbers")
        return Scores(criterion, values, details)
