"""The figure on scores: how they are distributed in every coupling group, and which of its channels stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from curlfx.report.charts import Axis, Legend, Strip, Table, figure, linear, logarithmic, strips
from curlfx.report.charts.axis import Values
from curlfx.report.content import PageContent
from curlfx.report.text import MISSING, shown

MOST_STRIPS = 300
"""Groups with a strip of their own; the page has to open on a phone."""
WIDE = 30.0
"""A ratio of scores from which on powers of ten are needed to tell them apart."""
LEGEND = (Legend("slim", "stay (upwards)"), Legend("gone", "go (downwards)"))


def score_figure(content: PageContent) -> Markup | None:
    """The figure; None without scores."""
    found = [_strip(str(group["id"]), content.scores, content.keep) for group in content.groups]
    known = [one for one in found if one is not None]
    if not known:
        return None
    axis = _axis(np.concatenate([values for one in known for values in (one.kept, one.gone)]))
    criterion = content.summary["importance"]
    body = strips(known[:MOST_STRIPS], axis, label=f"Scores by {criterion} in {len(known)} coupling groups.")
    note = (
        f"Scores by {criterion}, of the dense network, before they are divided by any cost; higher stays. Every row "
        "has a scale of its own for how many channels there are."
    )
    if len(known) > MOST_STRIPS:
        note += f" The first {MOST_STRIPS} of {len(known)} groups."
    return figure("scores", "Scores in every coupling group", body, legend=LEGEND, note=note, table=_table(known))


def _strip(group: str, scores: Mapping[str, Sequence[float]], keep: Mapping[str, Sequence[int]]) -> Strip | None:
    if group not in scores:
        return None
    values = np.array(scores[group], np.float64)
    stays = np.ones(values.size, bool)
    if group in keep:
        stays[:] = False
        stays[np.array(keep[group], np.int64)] = True
    return Strip(group, values[stays], values[~stays], f"{int(stays.sum())} of {stays.size}")


def _axis(values: Values) -> Axis:
    """Powers of ten where scores differ that much and none is negative."""
    known = values[np.isfinite(values)]
    positive = known[known > 0]
    if positive.size and known.min() >= 0 and positive.max() > WIDE * np.median(positive):
        return logarithmic([float(np.quantile(positive, 0.001)), float(positive.max())])
    ends = [float(known.min()), float(known.max())] if known.size else []
    return linear(ends)


def _table(found: Sequence[Strip]) -> Table:
    head = (
        "coupling group",
        "stay",
        "go",
        "least that stays",
        "median that stays",
        "median that goes",
        "most that goes",
    )
    rows = [
        (
            one.name,
            str(one.kept.size),
            str(one.gone.size),
            _said(one.kept, np.min),
            _said(one.kept, np.median),
            _said(one.gone, np.median),
            _said(one.gone, np.max),
        )
        for one in found
    ]
    return Table("scores by coupling group", head, rows)


def _said(values: Values, pick: Callable[[Values], np.float64]) -> str:
    return shown(float(pick(values)), ".3g") if values.size else MISSING
