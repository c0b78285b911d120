"""The frame around the marks of a chart: two axes, a grid, and what they measure."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from curlfx.report.charts.axis import FINE, Axis, Tick
from curlfx.report.templates import fill


def plot(
    label: str,
    marks: Markup,
    *,
    y: Axis,
    x: Axis | None = None,
    y_text: str = "",
    x_text: str = "",
    width: int = FINE,
) -> Markup:
    """The frame with ``marks`` in it.

    Args:
        label: What the chart shows, in a sentence, for those who do not see it.
        marks: SVG in a field ``width`` units wide and `FINE` high, y downwards.
        y: Vertical axis.
        x: Horizontal axis; None has no ticks.
        y_text: What the vertical axis measures.
        x_text: What the horizontal one does.
        width: Units from the left to the right.
    """
    ticks = y.ticks
    return fill(
        "charts/plot.html.jinja",
        label=label,
        marks=marks,
        y_ticks=ticks,
        x_ticks=() if x is None else x.ticks,
        y_text=y_text,
        x_text=x_text,
        width=width,
        fine=FINE,
        gutter=_longest(ticks) + 1,
    )


def _longest(ticks: Sequence[Tick]) -> int:
    return max((len(tick.text) for tick in ticks), default=0)
