"""Axes: which numbers a chart spans, where they lie, and which of them are written beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curlfx.report.text import count

Values = npt.NDArray[np.float64]
FINE = 1000
"""Units that the side of a plot is divided into."""
STEPS = (1.0, 2.0, 5.0, 10.0)
TINY = 1e-290
"""Differences below this are none: their ticks could not be told apart."""
DECADES = 12
"""An axis of powers of ten reaches no further down than this."""


@dataclass(frozen=True)
class Tick:
    """A number beside an axis.

    Attributes:
        at: In percent of the axis, in [0, 100].
        text: As it is written.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A range of numbers.

    Attributes:
        low: Where it begins.
        high: Where it ends, above ``low``.
        marks: Numbers with a tick.
        powers: Whether equal distances are equal ratios; then ``low`` is above 0.
        write: Text of a tick.
    """

    low: float
    high: float
    marks: tuple[float, ...]
    powers: bool = False
    write: Callable[[float], str] = count

    def shares(self, values: Values) -> Values:
        """Where ``values`` lie, in [0, 1]; what is outside lies at the end. Shapes: both the same."""
        if self.powers:
            found = np.log(np.maximum(values, self.low) / self.low) / math.log(self.high / self.low)
        else:
            found = (values - self.low) / (self.high - self.low)
        return np.clip(found, 0.0, 1.0)

    def share(self, value: float) -> float:
        """The same of one number."""
        return float(self.shares(np.array(value, np.float64)))

    def at(self, value: float) -> int:
        """The same in units of a plot, from 0 to `FINE`."""
        return round(FINE * self.share(value))

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """The numbers beside it."""
        return tuple(Tick(round(100 * self.share(value), 2), self.write(value)) for value in self.marks)


def linear(
    values: Iterable[float], *, zero: bool = False, marks: int = 5, write: Callable[[float], str] | None = None
) -> Axis:
    """An axis with round ends around the finite ones of ``values``, about ``marks`` ticks, from 0 if asked for.

    Without ``write`` ticks have as many digits as tell them apart.
    """
    known = [float(value) for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < TINY:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(low) > TINY else (0.0, 1.0)
    step = _step((high - low) / max(1, marks - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, write=write or _plain(step, max(map(abs, ticks))))


def whole(first: int, last: int, marks: int = 7) -> Axis:
    """An axis from ``first`` to ``last`` and no further, with ticks at whole numbers, at most about ``marks``."""
    last = max(last, first + 1)
    step = max(1, round(_step((last - first) / max(1, marks - 1))))
    start = -(-first // step) * step
    ticks = tuple(float(number) for number in range(start, last + 1, step))
    return Axis(first, last, ticks, write=lambda value: f"{value:g}")


def logarithmic(values: Iterable[float], write: Callable[[float], str] = lambda value: f"{value:.0e}") -> Axis:
    """An axis of powers of ten around the positive ones of ``values``; what is below them lies at its beginning."""
    known = [float(value) for value in values if math.isfinite(value) and value > TINY] or [1.0]
    top = math.ceil(math.log10(max(known)) - 1e-9)
    bottom = max(math.floor(math.log10(min(known)) + 1e-9), top - DECADES)
    bottom = min(bottom, top - 1)
    stride = -(-(top - bottom) // 5)
    ticks = tuple(10.0**power for power in range(bottom, top + 1, stride))
    return Axis(10.0**bottom, 10.0**top, ticks, powers=True, write=write)


def _plain(step: float, largest: float) -> Callable[[float], str]:
    """How numbers up to ``largest`` are written where they are multiples of ``step``."""
    digits = math.ceil(math.log10(largest / step) - 1e-9) + 1
    return lambda value: f"{value:.{digits}g}"


def _step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least ``least``."""
    size = 10.0 ** math.floor(math.log10(least))
    return next(step * size for step in STEPS if step * size >= least * (1 - 1e-9))
