"""A chart with its title, its colours explained, and the numbers behind it as a table that opens on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from curlfx.report.templates import fill

MOST_ROWS = 1000
"""Of a table; the page has to open on a phone."""


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        title: What it is a table of, for those who do not see it.
        head: Names of the columns; () has none.
        rows: Cells.
        text: Columns that are words, not numbers.
        where: Where rows are that are left out, after a comma; "" says nothing.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (0,)
    where: str = ""

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows on the page."""
        return self.rows[:MOST_ROWS]

    @property
    def rest(self) -> int:
        """How many are left out."""
        return len(self.rows) - len(self.shown)

    def markup(self) -> Markup:
        """The table in a box of its own, which scrolls when it is too wide."""
        return fill("table.html.jinja", table=self)


@dataclass(frozen=True)
class Legend:
    """What a colour means.

    Attributes:
        style: A class of the page's style sheet.
        text: In words.
    """

    style: str
    text: str


def figure(
    name: str,
    title: str,
    body: Markup,
    *,
    legend: Sequence[Legend] = (),
    note: str = "",
    table: Table | None = None,
) -> Markup:
    """The whole of a chart; ``name`` is its id on the page, ``note`` a sentence below it."""
    return fill("charts/figure.html.jinja", name=name, title=title, body=body, legend=legend, note=note, table=table)
