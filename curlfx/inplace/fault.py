"""What stands in the way of narrowing a module in place, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A place in the user's code that does not follow when tensors get narrower.

    Attributes:
        reason: What was found, in words.
        module: Dotted name of the module whose code it is; "" for the model itself, or where it is not known.
        line: Like ``"models/gfnet.py:87"``; "" where it is not known.
    """

    reason: str
    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        owner = f"module '{self.module}'" if self.module else ""
        place = f"{owner} ({self.line})" if owner and self.line else owner or self.line
        return f"{place}: {self.reason}" if place else self.reason


class InPlaceWarning(UserWarning):
    """Something about narrowing in place that the caller should know; ``fault`` says what and where.

    Attributes:
        fault: What was found.
    """

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault
