"""Curves over a common axis, with levels to compare with and borders between sections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from curlfx.report.charts.axis import FINE, Axis
from curlfx.report.charts.plot import plot
from curlfx.report.templates import fill

MOST_DOTS = 400
"""A curve of more points than this is a line without dots."""


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Attributes:
        x: On the horizontal axis.
        y: On the vertical one; the curve has a gap where it is no finite number.
        text: What its tooltip says.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """Points from left to right.

    Attributes:
        points: In order.
        style: Colour, a class of the page's style sheet.
        dashed: Whether the line is.
    """

    points: tuple[Point, ...]
    style: str
    dashed: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line.

    Attributes:
        y: Where.
        text: What its tooltip says.
        style: Colour, as of a curve.
    """

    y: float
    text: str
    style: str


@dataclass(frozen=True)
class Border:
    """A vertical line.

    Attributes:
        x: Where.
    """

    x: float


def lines(
    curves: Sequence[Curve],
    *,
    label: str,
    x: Axis,
    y: Axis,
    levels: Sequence[Level] = (),
    borders: Sequence[Border] = (),
    y_text: str = "",
    x_text: str = "",
) -> Markup:
    """The chart; texts as `curlfx.report.charts.plot.plot`."""
    marks = fill(
        "charts/lines.html.jinja",
        fine=FINE,
        borders=[x.at(one.x) for one in borders],
        levels=[{"y": FINE - y.at(one.y), "text": one.text, "style": one.style} for one in levels],
        curves=[
            {"style": one.style, "dashed": one.dashed, "path": _path(one.points, x, y), "dots": _dots(one.points, x, y)}
            for one in curves
        ],
    )
    return plot(label, marks, x=x, y=y, y_text=y_text, x_text=x_text)


def _path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Move to the first point and to that behind every gap, draw to the others."""
    parts, drawing = [], False
    for point in points:
        if math.isfinite(point.y):
            parts.append(f"{'L' if drawing else 'M'}{x.at(point.x)} {FINE - y.at(point.y)}")
        drawing = math.isfinite(point.y)
    return "".join(parts)


def _dots(points: Sequence[Point], x: Axis, y: Axis) -> list[dict[str, object]]:
    if len(points) > MOST_DOTS:
        return []
    known = [one for one in points if math.isfinite(one.y)]
    return [{"x": x.at(one.x), "y": FINE - y.at(one.y), "text": one.text} for one in known]
