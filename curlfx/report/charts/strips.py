"""Two histograms per row on one axis: upwards what stays, downwards what goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from curlfx.report.charts.axis import Axis, Values
from curlfx.report.templates import fill

BINS = 40
WIDTH = 5
"""Units of one bin."""
HALF = 20
"""Units that the tallest bin of a row is high."""


@dataclass(frozen=True, eq=False)
class Strip:
    """One row.

    Attributes:
        name: To the left of it.
        kept: ``(n,)`` numbers counted upwards.
        gone: ``(m,)`` numbers counted downwards.
        text: To the right of it.
    """

    name: str
    kept: Values
    gone: Values
    text: str


def strips(found: Sequence[Strip], axis: Axis, *, label: str) -> Markup:
    """The chart. Heights are counts, divided by the largest of the row."""
    rows = []
    for one in found:
        kept, gone = binned(one.kept, axis), binned(one.gone, axis)
        most = max(1, int(kept.max(initial=0)), int(gone.max(initial=0)))
        rows.append(
            {
                "name": one.name,
                "text": one.text,
                "kept": _path(kept, most, up=True),
                "gone": _path(gone, most, up=False),
            }
        )
    return fill("charts/strips.html.jinja", label=label, strips=rows, ticks=axis.ticks, width=BINS * WIDTH)


def binned(values: Values, axis: Axis) -> npt.NDArray[np.int64]:
    """How many of ``values`` are in each of `BINS` equal parts of the axis, ``(BINS,)``; others count at its ends."""
    places = np.minimum((BINS * axis.shares(values[np.isfinite(values)])).astype(np.int64), BINS - 1)
    return np.bincount(places, minlength=BINS)


def _path(counts: npt.NDArray[np.int64], most: int, *, up: bool) -> str:
    """The outline of a histogram, from the middle line and back to it; "" for an empty one."""
    heights = [max(2, round(HALF * int(number) / most)) if number else 0 for number in counts]
    if not any(heights):
        return ""
    parts, before, run = [f"M0 {HALF}"], 0, 0
    for height in heights:
        if height != before:
            parts += [f"h{run}"] * bool(run) + [f"v{before - height if up else height - before}"]
            before, run = height, 0
        run += WIDTH
    return "".join(parts) + f"h{run}V{HALF}z"
