"""Charts of the report page: pure functions from numbers to inline SVG that takes its colours from the page.

Plots stretch to the width of the page while their texts do not: marks are SVG with ``preserveAspectRatio="none"`` and
strokes that do not scale, ticks are HTML beside it.
"""

from curlfx.report.charts.axis import Axis, linear, logarithmic, whole
from curlfx.report.charts.bars import Bar, BarRow, bars
from curlfx.report.charts.columns import Column, columns
from curlfx.report.charts.figure import Legend, Table, figure
from curlfx.report.charts.lines import Border, Curve, Level, lines
from curlfx.report.charts.scatter import Dot, scatter
from curlfx.report.charts.strips import Strip, strips

__all__ = [
    "Axis",
    "Bar",
    "BarRow",
    "Border",
    "Column",
    "Curve",
    "Dot",
    "Legend",
    "Level",
    "Strip",
    "Table",
    "bars",
    "columns",
    "figure",
    "linear",
    "lines",
    "logarithmic",
    "scatter",
    "strips",
    "whole",
]
