"""Columns side by side, one per layer: what it was, and in front of it what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from curlfx.report.charts.axis import FINE, linear
from curlfx.report.charts.plot import plot
from curlfx.report.templates import fill
from curlfx.report.text import count

PITCH = 10
"""Units from one column to the next."""
FEWEST = 6
"""There is room for as many columns at least, so that one alone is not a wall."""


@dataclass(frozen=True)
class Column:
    """One layer.

    Attributes:
        name: As people know it.
        before: Of the dense network, 0 or more.
        after: Of the slim one.
    """

    name: str
    before: float
    after: float

    @property
    def text(self) -> str:
        """What its tooltip says."""
        return f"{self.name}: {count(self.before)} → {count(self.after)}"


def columns(found: Sequence[Column], *, label: str, y_text: str, x_text: str) -> Markup:
    """The chart, in the order given; texts as `curlfx.report.charts.plot.plot`."""
    y = linear([value for one in found for value in (one.before, one.after)], zero=True, write=count)
    marks = fill(
        "charts/columns.html.jinja",
        fine=FINE,
        columns=[
            {"x": PITCH * place + 1, "before": y.at(one.before), "after": y.at(one.after), "text": one.text}
            for place, one in enumerate(found)
        ],
    )
    return plot(label, marks, y=y, y_text=y_text, x_text=x_text, width=PITCH * max(FEWEST, len(found)))
