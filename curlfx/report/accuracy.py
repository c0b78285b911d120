"""Figures on accuracy: at the stations of a run, epoch by epoch, and beside the controls of a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

from markupsafe import Markup

from curlfx.report.charts import Bar, BarRow, Border, Curve, Legend, Level, Table, bars, figure, linear, lines, whole
from curlfx.report.charts.lines import Point
from curlfx.report.content import PageContent
from curlfx.report.text import count, number, percent, shown

DENSE = "train"
"""Stage in which the dense network is trained."""
TRAININGS = {
    DENSE: ("dense", "training of the dense network"),
    "supernet": ("c6", "training of the supernet"),
    "overparam": ("c3", "training enlarged"),
    "recover": ("slim", "recovery"),
    "refine": ("c5", "label refinement"),
}
"""Colour and name of every training, in the order in which they run."""
PRUNED = ("c6", "training, pruned meanwhile")
"""The same of the first training where channels went meanwhile."""
CONTROL = "control "
"""How the stage of a control begins, before the control's name and, after a comma, the training's."""
CONTROL_COLOURS = {"uniform": "c2", "random": "c4"}
STATIONS = {
    "recalibrate": "BatchNorm measured afresh",
    "overparam": "trained enlarged",
    "recover": "recovered",
    "refine": "labels refined",
}


def accuracy_figures(content: PageContent) -> Iterator[Markup]:
    """The figures, as far as there is something to show."""
    if math.isfinite(number(content.summary["dense"].get("accuracy"))):
        yield _stations(content)
    if any(math.isfinite(number(one["validation"])) for one in content.epochs):
        yield _epochs(content)
    controls = (content.search or {}).get("controls", {})
    if any("accuracy" in one for one in controls.values()):
        yield _controls(content, controls)


def stations(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Accuracy on the test images at every station of a run, by name, in order; the last one is that of the result."""
    recovery = summary["recovery"]
    found = [("dense", number(summary["dense"].get("accuracy")))]
    found += [("slimmed, biases lost", number(recovery.get("accuracy_before_without_absorbing")))]
    found += [("straight after slimming", number(recovery.get("accuracy_before")))]
    after = recovery.get("accuracy_after", {})
    found += [(name, number(after.get(stage))) for stage, name in STATIONS.items()]
    known = [(name, accuracy) for name, accuracy in found if math.isfinite(accuracy)]
    if known and not any(name in STATIONS.values() for name, _ in known):
        return known
    final = number(summary["slim"].get("accuracy"))
    return known if known and known[-1][1] == final else [*known, ("slim", final)]


def _stations(content: PageContent) -> Markup:
    found = stations(content.summary)
    rows = [
        BarRow(name, (Bar(accuracy, percent(accuracy), "dense" if name == "dense" else "slim"),))
        for name, accuracy in found
    ]
    label = "Accuracy: " + ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in found)
    table = Table("accuracy by station", ("", "accuracy"), [(name, shown(value, ".4f")) for name, value in found])
    note = f"Top-1 on {content.images} test images; straight after slimming it was {_told(content.summary)}."
    return figure("stations", "Accuracy on the way", bars(rows, label=label, top=1.0), note=note, table=table)


def _told(summary: Mapping[str, Any]) -> str:
    """Accuracy before any recovery, also without the biases that took something over, and after each stage of it."""
    recovery = summary["recovery"]
    bare = number(recovery.get("accuracy_before_without_absorbing"))
    without = f" (without absorbed biases {bare:.4f})" if math.isfinite(bare) else ""
    after = {stage: number(accuracy) for stage, accuracy in recovery.get("accuracy_after", {}).items()}
    stages = "".join(f", after {stage} {value:.4f}" for stage, value in after.items() if math.isfinite(value))
    return f"{shown(number(recovery.get('accuracy_before')), '.4f')}{without}{stages}"


def _epochs(content: PageContent) -> Markup:
    own = [(stage, list(of)) for stage, of in groupby(content.epochs, key=lambda one: str(one["stage"]))]
    main = [(stage, of) for stage, of in own if stage in TRAININGS and stage != "supernet"]
    summary = content.summary
    names = {**TRAININGS, DENSE: PRUNED} if summary.get("gradual") is not None else TRAININGS
    starts = list(accumulate((len(of) for _, of in main), initial=0))
    curves = _curves(main, starts, names, number(summary["recovery"].get("accuracy_before")))
    controls = [(stage.removeprefix(CONTROL).partition(", "), of) for stage, of in own if stage.startswith(CONTROL)]
    begun = dict(zip((stage for stage, _ in main), starts, strict=False))
    for (name, _, training), of in controls:
        points = _points(of, begun.get(training, 0), f"control {name}")
        curves.append(Curve(tuple(points), CONTROL_COLOURS.get(name, "c2"), dashed=True))
    dense = number(summary["dense"].get("accuracy"))
    levels = [Level(dense, f"dense network, test images: {percent(dense)}", "dense")] if math.isfinite(dense) else []
    heights = [point.y for curve in curves for point in curve.points] + [level.y for level in levels]
    body = lines(
        curves,
        label=f"Accuracy over {starts[-1]} epochs of {', '.join(names[stage][1] for stage, _ in main)}.",
        x=whole(0, starts[-1]),
        y=linear(heights, write=lambda value: f"{100 * value:g} %"),
        levels=levels,
        borders=[Border(start) for start in starts[1:-1]],
        y_text="accuracy on held-out images",
        x_text="epoch",
    )
    legend = [Legend(*names[stage]) for stage, _ in main]
    controlled = dict.fromkeys(name for (name, *_), _ in controls)
    legend += [Legend(CONTROL_COLOURS.get(name, "c2"), f"control: {name}") for name in controlled]
    legend += [Legend("level dense", "dense network")] * bool(levels)
    return figure("epochs", "Accuracy, epoch by epoch", body, legend=legend, table=_history(content.epochs))


def _curves(
    trainings: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    starts: Sequence[int],
    names: Mapping[str, tuple[str, str]],
    before: float,
) -> list[Curve]:
    """One curve per training; those of the slim network go on where the one before ended, from ``before``."""
    curves: list[Curve] = []
    last: tuple[Point, ...] = ()
    for (stage, epochs), start in zip(trainings, starts, strict=False):
        style, name = names[stage]
        if stage != DENSE and not last:
            last = (Point(start, before, f"straight after slimming: {percent(before)}"),)
        points = (*last, *_points(epochs, start, name))
        curves.append(Curve(points, style))
        last = () if stage == DENSE else points[-1:]
    return curves


def _points(epochs: Sequence[Mapping[str, Any]], done: int, name: str) -> list[Point]:
    found = [(number(one["epoch"]), number(one["validation"])) for one in epochs]
    return [Point(done + epoch, height, f"{name}, epoch {epoch:g}: {percent(height)}") for epoch, height in found]


def _history(epochs: Sequence[Mapping[str, Any]]) -> Table:
    head = ("training", "epoch", "loss", "accuracy, training images", "accuracy, held out", "learning rate", "seconds")
    rows = [
        (
            str(one["stage"]),
            str(one["epoch"]),
            shown(number(one["loss"]), ".4f"),
            shown(number(one["accuracy"]), ".4f"),
            shown(number(one["validation"]), ".4f"),
            shown(number(one["lr"]), ".2g"),
            shown(number(one["seconds"]), ".1f"),
        )
        for one in epochs
    ]
    return Table("epochs", head, rows)


def _controls(content: PageContent, controls: Mapping[str, Any]) -> Markup:
    summary = content.summary
    networks = {"found": {**(content.search or {})["best"], "accuracy": summary["slim"]["accuracy"]}, **controls}
    colours = {"found": "slim", **CONTROL_COLOURS}
    values = {name: number(one.get("accuracy")) for name, one in networks.items()}
    rows = [BarRow(name, (Bar(value, percent(value), colours.get(name, "c2")),)) for name, value in values.items()]
    table = Table(
        "controls",
        ("widths", "accuracy", "proxy", "MACs", "parameters"),
        [
            (name, shown(values[name], ".4f"), shown(number(one["value"]), ".5f"), *_costs(one["cost"]))
            for name, one in networks.items()
        ],
    )
    label = "Accuracy: " + ", ".join(f"{name} widths {percent(value)}" for name, value in values.items())
    note = "The controls, uniform widths and the best of as many random networks, were recovered with the same recipe."
    return figure("controls", "Beside the controls", bars(rows, label=label, top=1.0), note=note, table=table)


def _costs(cost: Mapping[str, float]) -> tuple[str, str]:
    return count(cost["macs"]), count(cost["params"])
