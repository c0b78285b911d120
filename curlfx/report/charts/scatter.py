"""Networks by what they cost and how good they are; those that nothing beats are joined to a front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from curlfx.report.charts.axis import FINE, Axis
from curlfx.report.charts.plot import plot
from curlfx.report.templates import fill


@dataclass(frozen=True)
class Dot:
    """One network.

    Attributes:
        x: On the horizontal axis; a dot without finite numbers is left out.
        y: On the vertical one.
        text: What its tooltip says.
        style: Colour, a class of the page's style sheet.
        large: Whether it stands out.
        front: Whether it is on the front.
    """

    x: float
    y: float
    text: str
    style: str
    large: bool = False
    front: bool = False


def scatter(dots: Sequence[Dot], *, label: str, x: Axis, y: Axis, y_text: str = "", x_text: str = "") -> Markup:
    """The chart; texts as `curlfx.report.charts.plot.plot`."""
    known = [one for one in dots if math.isfinite(one.x) and math.isfinite(one.y)]
    placed = [
        {"x": x.at(one.x), "y": FINE - y.at(one.y), "text": one.text, "style": one.style, "large": one.large}
        for one in known
    ]
    on_front = sorted((one for one in known if one.front), key=lambda one: (one.x, -one.y))
    front = "L".join(f"{x.at(one.x)} {FINE - y.at(one.y)}" for one in on_front)
    line, style = (f"M{front}", on_front[0].style) if len(on_front) > 1 else ("", "")
    marks = fill("charts/scatter.html.jinja", dots=placed, front=line, style=style)
    return plot(label, marks, x=x, y=y, y_text=y_text, x_text=x_text)
