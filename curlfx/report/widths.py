"""Figures on what became narrower: width and MACs of every layer."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from curlfx.report.charts import Column, Legend, Table, columns, figure
from curlfx.report.content import PageContent
from curlfx.report.text import count, share

LEGEND = (Legend("dense", "dense"), Legend("slim", "slim"))
ORDER = "layers, from the input to the output"
FILE = " and are in layers.csv"


def width_figures(content: PageContent) -> Iterator[Markup]:
    """The figures, as far as there is something to show."""
    if content.widths:
        found = [Column(str(one["layer"]), one["before"], one["after"]) for one in content.widths]
        yield _figure("widths", "Width of every layer", found, "channels")
    found = [
        Column(row["layer"], int(row["macs_before"]), int(row["macs_after"]))
        for row in content.layers
        if int(row["macs_before"])
    ]
    if found:
        yield _figure("macs", "MACs of every layer", found, "multiply-adds for one image")


def _figure(name: str, title: str, found: list[Column], y_text: str) -> Markup:
    before, after = (sum(values) for values in zip(*((one.before, one.after) for one in found), strict=True))
    label = f"{title}, {len(found)} layers, dense and slim: {count(before)} and {count(after)} in all."
    rows = [(one.name, f"{one.before:,}", f"{one.after:,}", share(one.after, one.before)) for one in found]
    table = Table(title, ("layer", "dense", "slim", "left"), rows, where=FILE)
    return figure(name, title, columns(found, label=label, y_text=y_text, x_text=ORDER), legend=LEGEND, table=table)
