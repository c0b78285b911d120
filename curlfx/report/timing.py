"""Figures on time: latency with its spread, and what every operator takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from curlfx.report.charts import Bar, BarRow, Legend, Table, bars, figure
from curlfx.report.content import PageContent
from curlfx.report.text import MISSING, number, percent, shown

TITLES = {"int8": "slim, 8 bits"}
"""Names of networks that need more words."""
STYLES = {"dense": "dense", "slim": "slim", "int8": "c3"}
COMPARED = ("dense", "slim")
"""Networks with bars by operator; the table has all."""
ROOM = 2.0
"""Bars end at this many times the longest median; a spread that goes on is cut there."""
MOST_OPERATORS = 12
"""Bars of the chart; the table has all."""
FIGURES = ("median", "p10", "p90", "p99", "min", "mean")


def timing_figures(content: PageContent) -> Iterator[Markup]:
    """The figures, as far as there is something to show."""
    if content.timings:
        yield _latencies(content.timings, content.measurement)
    attempts = (content.summary.get("latency") or {}).get("attempts")
    if attempts:
        yield _attempts(content.summary["latency"])
    if content.operators:
        yield _operators(content.operators, content.remarks)


def _latencies(timings: Sequence[Mapping[str, Any]], measurement: str) -> Markup:
    names = [TITLES.get(one["name"], one["name"]) for one in timings]
    rows = [
        BarRow(name, (Bar(number(one["median"]), _ms(one["median"]), STYLES.get(one["name"], "c2"), _spread(one)),))
        for name, one in zip(names, timings, strict=True)
    ]
    label = "Median latency: " + ", ".join(f"{row.name} {row.bars[0].text}" for row in rows)
    cells = [
        (name, *(_ms(one.get(key)) for key in FIGURES), percent(number(one.get("cov"))))
        for name, one in zip(names, timings, strict=True)
    ]
    table = Table("latencies", ("network", *FIGURES, "coefficient of variation"), cells)
    note = f"Median, and the span of 8 in 10 calls. {measurement}."
    return figure("latency", "Latency", bars(rows, label=label, top=_top(rows)), note=note, table=table)


def _top(rows: Sequence[BarRow]) -> float | None:
    """End of the scale, where a few slow calls would leave no room for the medians; else None."""
    medians = [bar.value for row in rows for bar in row.bars if math.isfinite(bar.value)]
    ends = [end for row in rows for bar in row.bars for end in bar.spread or ()]
    longest = ROOM * max(medians, default=0.0)
    return longest if longest and max(ends, default=0.0) > longest else None


def _spread(one: Mapping[str, Any]) -> tuple[float, float] | None:
    ends = number(one.get("p10")), number(one.get("p90"))
    return ends if all(map(math.isfinite, ends)) else None


def _attempts(found: Mapping[str, Any]) -> Markup:
    rows = [
        BarRow(
            f"plan {place}",
            (
                Bar(number(predicted), _ms(predicted), "c2"),
                Bar(number(took), _ms(took), "slim"),
            ),
        )
        for place, (predicted, took) in enumerate(found["attempts"], 1)
    ]
    rows.append(BarRow("target", (Bar(number(found["limit_ms"]), _ms(found["limit_ms"]), "dense"),)))
    label = f"Predicted and measured latency of {len(rows) - 1} plans, for a target of {_ms(found['limit_ms'])}."
    cells = [(f"plan {place}", *map(_ms, pair)) for place, pair in enumerate(found["attempts"], 1)]
    table = Table("plans that were measured", ("", "predicted", "measured"), cells)
    note = _error(found.get("prediction_error"))
    legend = [Legend("c2", "predicted"), Legend("slim", "measured"), Legend("dense", "target")]
    body = bars(rows, label=label)
    return figure("attempts", "Plans that were measured for the target", body, legend=legend, note=note, table=table)


def _error(found: Mapping[str, Any] | None) -> str:
    """How far predictions are to be trusted."""
    if found is None:
        return ""
    middle, worst = (f"{100 * found[key]:.1f} %" for key in ("median", "worst"))
    return f"Networks left out of the fit are predicted with an error of {middle} (median), {worst} (worst)."


def _operators(operators: Mapping[str, Sequence[Mapping[str, Any]]], remarks: Sequence[str]) -> Markup:
    times = {
        network: {str(one["op_type"]): number(one["milliseconds"]) for one in found}
        for network, found in operators.items()
        if network in COMPARED
    }
    most = {name: max(of.get(name, 0.0) for of in times.values()) for of in times.values() for name in of}
    order = sorted(most, key=lambda name: (-most[name], name))
    rows = [
        BarRow(
            name,
            tuple(
                Bar(of.get(name, 0.0), _ms(of[name]) if name in of else MISSING, STYLES.get(network, "c2"))
                for network, of in times.items()
            ),
        )
        for name in order[:MOST_OPERATORS]
    ]
    sums = ", ".join(f"{network} {_ms(sum(of.values()))}" for network, of in times.items())
    cells = [
        (str(network), str(one["op_type"]), str(one["nodes"]), _ms(one["milliseconds"]), percent(number(one["share"])))
        for network, found in operators.items()
        for one in found
    ]
    table = Table("time by operator", ("network", "operator", "nodes", "time", "share"), cells, text=(0, 1))
    note = " ".join(
        [
            f"Every node timed by itself, which takes time too: the sums ({sums}) are not the latencies.",
            *(f"{remark}." for remark in remarks),
        ]
    )
    legend = [Legend(STYLES.get(network, "c2"), network) for network in times]
    body = bars(rows, label=f"Time by operator; in all {sums}.")
    return figure("operators", "Time by operator", body, legend=legend, note=note, table=table)


def _ms(value: Any) -> str:
    return shown(number(value), ".3f", " ms")
