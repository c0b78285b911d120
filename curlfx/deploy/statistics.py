"""What many timings say, and how surely."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Timings = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """Summary of timings, each of one call, in milliseconds.

    Attributes:
        median: Half of the calls took longer.
        p10: One call in ten took less.
        p90: One call in ten took longer.
        p99: One call in a hundred took longer.
        min: The fastest.
        mean: Their average.
        cov: Coefficient of variation: standard deviation over mean, without a unit.
        runs: How many calls.
    """

    median: float
    p10: float
    p90: float
    p99: float
    min: float
    mean: float
    cov: float
    runs: int

    @staticmethod
    def of(timings: Timings) -> Latency:
        """Summary of timings in milliseconds, of any shape."""
        flat = timings.ravel()
        median, p10, p90, p99 = (float(one) for one in np.percentile(flat, (50, 10, 90, 99)))
        mean = float(flat.mean())
        cov = float(flat.std(ddof=1) / mean) if flat.size > 1 and mean > 0 else 0.0
        return Latency(median, p10, p90, p99, float(flat.min()), mean, cov, int(flat.size))

    def to_json(self) -> dict[str, float | int]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Speedup:
    """Ratio of two median latencies with its bootstrap interval.

    Attributes:
        ratio: Median of the first over median of the second; above 1 the second is faster.
        low: Lower end of the 95 % interval.
        high: Its upper end.
    """

    ratio: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval includes 1: these timings tell no difference."""
        return self.low <= 1.0 <= self.high

    @staticmethod
    def between(first: Timings, second: Timings, *, seed: int = 0) -> Speedup:
        """Compare timings taken side by side.

        Rounds are drawn with replacement, the same for both, so that what slowed a whole round down weighs on both.
        Shapes: both ``(rounds, runs)``.
        Source: Efron & Tibshirani 1993, percentile intervals, with the round as the unit.
        """
        rounds = len(first)
        ratio = float(np.median(first) / np.median(second))
        drawn = np.random.default_rng(seed).integers(rounds, size=(RESAMPLES, rounds))
        above, below = (np.median(one[drawn].reshape(RESAMPLES, -1), axis=1) for one in (first, second))
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(above / below, (tail, 100 - tail))
        return Speedup(ratio, min(ratio, float(low)), max(ratio, float(high)))
