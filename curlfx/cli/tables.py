"""Tables: drawn on a terminal, plain aligned columns anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curlfx.report.text import columns


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", text: Sequence[int] = (0,)
) -> None:
    """Print a table on stdout.

    Args:
        header: Names of the columns.
        rows: Cells, as many as ``header`` has names.
        title: Line above it.
        text: Positions of the columns that hold words, set to the left; numbers go to the right.
    """
    if not sys.stdout.isatty():
        print("\n".join(([title] if title else []) + columns([header, *rows], text=text)))
        return
    table = Table(title=escape(title) or None, title_justify="left", header_style="bold")
    for position, name in enumerate(header):
        table.add_column(escape(name), justify="left" if position in text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)
