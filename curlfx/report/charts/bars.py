"""Horizontal bars with their numbers beside them, one row per name, all on one scale from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from curlfx.report.charts.axis import FINE
from curlfx.report.templates import fill


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        value: Its length, 0 or more; none at all where this is no finite number.
        text: The number as people read it.
        style: Colour, a class of the page's style sheet.
        spread: Ends of a whisker, in the unit of the value.
    """

    value: float
    text: str
    style: str
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class BarRow:
    """Bars under one name.

    Attributes:
        name: To the left of them.
        bars: From top to bottom.
    """

    name: str
    bars: tuple[Bar, ...]


def bars(rows: Sequence[BarRow], *, label: str, top: float | None = None) -> Markup:
    """The chart; ``top`` is the value of a bar over the whole width, None that of the longest bar or whisker."""
    known = [bar for row in rows for bar in row.bars]
    ends = [end for bar in known for end in (bar.value, *(bar.spread or ())) if math.isfinite(end)]
    whole = max(ends, default=0.0) if top is None else top

    def length(value: float) -> int:
        return round(FINE * min(1.0, max(0.0, value / whole))) if whole > 0 and math.isfinite(value) else 0

    return fill(
        "charts/bars.html.jinja",
        label=label,
        fine=FINE,
        rows=[
            {
                "name": row.name,
                "bars": [
                    {
                        "style": bar.style,
                        "text": bar.text,
                        "length": length(bar.value),
                        "spread": None if bar.spread is None else tuple(map(length, bar.spread)),
                    }
                    for bar in row.bars
                ],
            }
            for row in rows
        ],
    )
