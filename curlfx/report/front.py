"""Figures on plans that were compared: the front of a search, how it got there, and a pruning while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from curlfx.report.accuracy import CONTROL_COLOURS
from curlfx.report.charts import Curve, Dot, Legend, Table, figure, linear, lines, scatter, whole
from curlfx.report.charts.lines import Point
from curlfx.report.content import PageContent
from curlfx.report.text import count, number, shown

COSTS: Mapping[str, tuple[str, str, Callable[[float], str]]] = {
    "macs": ("macs", "MACs", count),
    "padded_macs": ("padded_macs", "padded MACs", count),
    "params": ("params", "parameters", count),
    "size_mb": ("size_bytes", "size of the weights", lambda size: shown(size / 1e6, ".3g", " MB")),
    "latency_ms": ("latency_ms", "predicted latency", lambda time: shown(time, ".3g", " ms")),
}
"""By the name of a target: key among a plan's costs, what it is, and how it is written."""
FRONT = "c3"
"""Colour of the front."""


def front_figures(content: PageContent) -> Iterator[Markup]:
    """The figures, as far as there is something to show."""
    if content.search is not None:
        target = next(iter(content.summary["target"]), "macs")
        yield _front(content.search, COSTS.get(target, COSTS["macs"]))
        if content.search.get("history"):
            yield _generations(content.search["history"])
    gradual = content.summary.get("gradual")
    if gradual is not None and gradual["steps"]:
        yield _steps(gradual, content.summary["dense"])


def _front(search: Mapping[str, Any], cost: tuple[str, str, Callable[[float], str]]) -> Markup:
    key, title, write = cost
    networks = [
        *(("on the front", one, FRONT, False) for one in search["front"]),
        *((f"control: {name}", one, CONTROL_COLOURS.get(name, "c2"), True) for name, one in search["controls"].items()),
        ("found", search["best"], "slim", True),
    ]

    def spot(name: str, one: Mapping[str, Any], style: str, *, large: bool) -> Dot:
        price, value = number(one["cost"].get(key)), number(one["value"])
        text = f"{name}: {title} {write(price)}, proxy {value:.5f}"
        return Dot(price, value, text, style, large=large, front=name == "on the front")

    dots = [spot(name, one, style, large=large) for name, one, style, large in networks]
    body = scatter(
        dots,
        label=f"{len(search['front'])} networks on the front of proxy and {title}, of {search['looked_at']} compared.",
        x=linear([dot.x for dot in dots], marks=4, write=write),
        y=linear([dot.y for dot in dots]),
        y_text="proxy, lower is better",
        x_text=title,
    )
    table = Table(
        "networks on the front",
        ("", title, "proxy"),
        [(name, write(dot.x), shown(dot.y, ".5f")) for (name, *_), dot in zip(networks, dots, strict=True)],
    )
    legend = [Legend("slim", "found"), Legend(FRONT, "front")]
    legend += [Legend(CONTROL_COLOURS.get(name, "c2"), f"control: {name}") for name in search["controls"]]
    note = (
        f"{search['looked_at']} networks were compared by a proxy ({search.get('proxy', 'stages')}), before recovery."
    )
    return figure("front", "Plans that were compared", body, legend=legend, note=note, table=table)


def _generations(history: Sequence[float]) -> Markup:
    points = [
        Point(place, number(value), f"generation {place}: {number(value):.5f}")
        for place, value in enumerate(history, 1)
    ]
    body = lines(
        [Curve(tuple(points), "slim")],
        label=f"Best proxy after each of {len(points)} generations.",
        x=whole(1, len(points)),
        y=linear([point.y for point in points]),
        y_text="best proxy",
        x_text="generation",
    )
    table = Table("generations", ("generation", "best proxy"), [(f"{one.x:g}", shown(one.y, ".5f")) for one in points])
    return figure("generations", "Best network of every generation", body, table=table)


def _steps(gradual: Mapping[str, Any], dense: Mapping[str, Any]) -> Markup:
    steps = gradual["steps"]
    start = {"epoch": 0, "macs": dense["macs"], "params": dense["params"]}
    curves = []
    for key, style, title in (("macs", "slim", "MACs"), ("params", "c2", "parameters")):
        points = []
        for before, after in zip([start, *steps], [*steps, None], strict=True):
            height = 100 * before[key] / dense[key]
            points.append(
                Point(before["epoch"], height, f"after epoch {before['epoch']}: {height:.1f} % of the {title}")
            )
            if after is not None:
                points.append(Point(after["epoch"], height, f"before epoch {after['epoch']}: {height:.1f} %"))
        curves.append(Curve(tuple(points), style))
    body = lines(
        curves,
        label=f"MACs and parameters that {len(steps)} steps of pruning left.",
        x=whole(0, steps[-1]["epoch"]),
        y=linear([0, 100], write=lambda value: f"{value:g} %"),
        y_text="of the dense network",
        x_text="epoch of the training",
    )
    table = Table(
        "steps of the pruning",
        ("after epoch", "channels that went", "left", "MACs", "parameters"),
        [
            (
                str(step["epoch"]),
                str(step["channels"]),
                str(step["left"]),
                f"{100 * step['macs'] / dense['macs']:.1f} %",
                f"{100 * step['params'] / dense['params']:.1f} %",
            )
            for step in steps
        ],
        text=(),
    )
    note = (
        f"The training took {100 * gradual['training_macs'] / max(1, gradual['training_macs_dense']):.1f} % of the "
        f"multiply-adds of a dense one, and {gradual['training_seconds']:.0f} s, scoring included; a dense one would "
        f"have taken about {gradual['training_seconds_dense']:.0f} s, by the epochs up to the first step. The dense "
        "network of this page has zero weights in place of the channels that went."
    )
    if not gradual["reached"]:
        note += " The target was not reached."
    legend = [Legend("slim", "MACs"), Legend("c2", "parameters")]
    return figure("steps", "Pruning while training", body, legend=legend, note=note, table=table)
