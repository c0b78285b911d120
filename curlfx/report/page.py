"""``report.html``: one page that shows everything a run found, in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from curlfx.report.accuracy import accuracy_figures
from curlfx.report.charts import Bar, BarRow, Table, bars, figure
from curlfx.report.content import PageContent
from curlfx.report.drawing import picture
from curlfx.report.front import front_figures
from curlfx.report.layers import COLUMNS, NUMBERS
from curlfx.report.outline import from_values
from curlfx.report.scores import score_figure
from curlfx.report.templates import fill, text_of
from curlfx.report.text import headline, in_eight_bits, number, shown, verdict
from curlfx.report.tiles import tiles
from curlfx.report.timing import timing_figures
from curlfx.report.widths import width_figures

MOST_DRAWN = 800
"""Rows of the coupling graph; the page has to open on a phone."""


def render(content: PageContent) -> str:
    """The page as HTML; everything in it is escaped, and the same content gives the same page."""
    summary = content.summary
    script = text_of("page.js")
    page = fill(
        "page.html.jinja",
        content=content,
        summary=summary,
        script=Markup(script),  # noqa: S704 - ours
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(text_of("page.css")),  # noqa: S704 - ours
        tiles=tiles(content),
        verdict=verdict(summary),
        passed=bool(summary["verification"]["passed"]),
        target=", ".join(f"{key} {amount}" for key, amount in summary["target"].items()),
        quantised=in_eight_bits(summary),
        headline=Table("all figures", ("", "dense", "slim", "change"), headline(summary)).markup(),
        accuracy=list(accuracy_figures(content)),
        widths=list(width_figures(content)),
        scores=score_figure(content),
        coupling=_coupling(content),
        timing=list(timing_figures(content)),
        plans=list(front_figures(content)),
        checks=_checks(content),
        groups=_groups(content).markup() if content.groups else None,
        frozen=_frozen(content).markup() if content.frozen else None,
        layers=_layers(content).markup(),
        seconds=_seconds(summary["seconds"]),
        environment=_environment(summary).markup(),
    )
    return str(page)  # plain text from here on: what others replace in it is not escaped


def _coupling(content: PageContent) -> Mapping[str, Any] | None:
    """The drawing, and how much of it is left out."""
    if content.outline is None:
        return None
    rows, lanes = from_values(content.outline)
    drawn = picture(rows[:MOST_DRAWN], lanes, f"Coupling of {content.summary['model']}")
    return {"svg": drawn, "rows": len(rows), "rest": max(0, len(rows) - MOST_DRAWN)}


def _checks(content: PageContent) -> Markup:
    rows = [
        (
            str(one["name"]),
            shown(number(one["error"]), ".1e"),
            f"{number(one['bound']):.0e}",
            "passed" if number(one["error"]) <= number(one["bound"]) else "FAILED",
        )
        for one in content.checks
    ]
    head = ("check", "largest relative difference", "bound", "")
    return Table("verification", head, rows, text=(0, 3)).markup()


def _groups(content: PageContent) -> Table:
    rows = [
        (str(group["id"]), str(group["members"]), str(group["width"]), str(group["kept"])) for group in content.groups
    ]
    return Table("coupling groups", ("coupling group", "members", "before", "after"), rows)


def _frozen(content: PageContent) -> Table:
    rows = [(str(row["site"]), str(row["width"]), str(row["reason"]), str(row["node"])) for row in content.frozen]
    return Table("frozen channels", ("site", "width", "reason", "node"), rows, text=(0, 2, 3))


def _layers(content: PageContent) -> Table:
    words = [place for place, key in enumerate(COLUMNS) if key not in NUMBERS]
    rows = [[str(row[key]) for key in COLUMNS] for row in content.layers]
    head = [key.replace("_", " ") for key in COLUMNS]
    return Table("layers", head, rows, text=words, where=" and are in layers.csv")


def _seconds(seconds: Mapping[str, float]) -> Markup:
    rows = [BarRow(stage, (Bar(value, f"{value:.1f} s", "c2"),)) for stage, value in seconds.items()]
    label = f"Wall-clock time of every stage, {sum(seconds.values()):.1f} s in all."
    table = Table(
        "time of every stage", ("stage", "seconds"), [(key, f"{value:.1f}") for key, value in seconds.items()]
    )
    return figure("seconds", "Time of every stage", bars(rows, label=label), note=label, table=table)


def _environment(summary: Mapping[str, Any]) -> Table:
    pairs = (*summary["device"].items(), *summary["versions"].items())
    return Table("environment", (), [(str(key), _text(value)) for key, value in pairs], text=(0, 1))


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
