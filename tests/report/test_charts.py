"""Axes and charts by themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curlfx.report.charts import Bar, BarRow, Dot, Strip, bars, linear, logarithmic, scatter, strips, whole
from curlfx.report.charts.lines import Curve, Point, lines
from curlfx.report.charts.strips import BINS, binned


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0, 64], (0, 20, 40, 60, 80)),
        ([0.9, 1.0], (0.9, 0.95, 1.0)),
        ([0.31, 0.99], (0.2, 0.4, 0.6, 0.8, 1.0)),
        ([3], (2.6, 2.8, 3.0, 3.2, 3.4)),
        ([-1, 1], (-1, -0.5, 0, 0.5, 1)),
        ([0, 3e-15], (0, 1e-15, 2e-15, 3e-15)),
    ],
)
def test_ticks_are_round(values: list[float], marks: tuple[float, ...]) -> None:
    axis = linear(values)
    assert axis.marks[0] <= min(values)
    assert axis.marks[-1] >= max(values)
    assert axis.marks == pytest.approx(marks, rel=1e-12, abs=1e-30)


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [0.0, math.inf], [5e-324], [1e300, -1e300]])
def test_an_axis_of_any_numbers(values: list[float]) -> None:
    for axis in (linear(values), linear(values, zero=True), logarithmic(values)):
        assert axis.low < axis.high
        assert all(0 <= tick.at <= 100 for tick in axis.ticks)
        assert all(math.isfinite(axis.share(value)) for value in values if math.isfinite(value))


def test_places_on_an_axis() -> None:
    axis = linear([0, 10])
    assert [axis.at(value) for value in (-5, 0, 5, 10, 20)] == [0, 0, 500, 1000, 1000]
    powers = logarithmic([1e-4, 1.0])
    assert [powers.at(value) for value in (0, 1e-4, 1e-2, 1.0)] == [0, 0, 500, 1000]
    assert [tick.text for tick in powers.ticks] == ["1e-04", "1e-03", "1e-02", "1e-01", "1e+00"]


@pytest.mark.parametrize(
    ("ends", "marks"),
    [
        ((0, 16), (0, 5, 10, 15)),
        ((0, 2), (0, 1, 2)),
        ((1, 3), (1, 2, 3)),
        ((1, 1), (1, 2)),
        ((0, 200), (0, 50, 100, 150, 200)),
    ],
)
def test_whole_numbers(ends: tuple[int, int], marks: tuple[int, ...]) -> None:
    axis = whole(*ends)
    assert axis.marks == marks
    assert (axis.low, axis.high) == (ends[0], max(ends[1], ends[0] + 1))


def test_bars_share_one_scale() -> None:
    rows = [BarRow("a", (Bar(2.0, "two", "slim", (1.0, 4.0)),)), BarRow("b", (Bar(math.nan, "none", "dense"),))]
    text = bars(rows, label="l")
    assert 'class="slim" d="M0 0h500v10h-500z"' in text
    assert 'class="dense" d="M0 0h0v10h-0z"' in text
    assert 'd="M250 5H1000M250 1v8M1000 1v8"' in text
    assert 'class="slim" d="M0 0h200v10h-200z"' in bars(rows, label="l", top=10.0)


def test_no_bar_without_a_scale() -> None:
    assert 'd="M0 0h0v10h-0z"' in bars([BarRow("a", (Bar(0.0, "0", "slim"),))], label="l")


def test_a_curve_has_gaps_where_numbers_are_missing() -> None:
    points = tuple(Point(x, y, f"{x}") for x, y in enumerate((0.0, 1.0, math.nan, 0.5, 1.0)))
    text = lines([Curve(points, "slim")], label="l", x=linear([0, 4]), y=linear([0, 1]))
    assert 'd="M0 1000L250 0M750 500L1000 0"' in text
    assert text.count('class="dot slim"') == 4


def test_histograms_count_every_number_once() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert binned(values, linear([-1, 1])).sum() == 1000
    assert binned(np.array([math.nan, 0.0]), linear([-1, 1])).sum() == 1
    assert binned(np.zeros(0), linear([-1, 1])).shape == (BINS,)
    counts = binned(np.array([0.0, 0.0, 0.999, 1.0]), linear([0, 1]))
    assert (counts[0], counts[-1]) == (2, 2)


def test_what_stays_is_above_the_line_and_what_goes_below() -> None:
    strip = Strip("one", np.array([1.0]), np.array([0.0]), "1 of 2")
    text = strips([strip], linear([0, 1]), label="l")
    assert 'class="slim" d="M0 20h195v-20h5V20z"' in text
    assert 'class="gone" d="M0 20v20h5v-20h195V20z"' in text


def test_a_front_joins_what_is_on_it() -> None:
    dots = [Dot(1.0, 0.0, "b", "c1", front=True), Dot(0.0, 1.0, "a", "c1", front=True), Dot(0.5, 0.9, "c", "c2")]
    text = scatter([*dots, Dot(math.nan, 1.0, "none", "c2")], label="l", x=linear([0, 1]), y=linear([0, 1]))
    assert 'class="curve c1" d="M0 0L1000 1000"' in text
    assert text.count("<title>") == 3
