"""The figures at the head of the page: what the network was, what it is, and what that changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curlfx.report.content import PageContent
from curlfx.report.text import MISSING, count, latency, number, percent, shown


@dataclass(frozen=True)
class Tile:
    """One figure.

    Attributes:
        name: What it is.
        before: Of the dense network.
        after: Of the slim one.
        change: From the one to the other, in words.
        good: Whether that is an improvement, or at least no loss.
        share: What is left, in percent, for a bar; None has none.
        note: More about it.
    """

    name: str
    before: str
    after: str
    change: str
    good: bool
    share: float | None
    note: str


def tiles(content: PageContent) -> tuple[Tile, ...]:
    """Accuracy, latency, MACs, parameters and size of the file."""
    summary = content.summary
    return (
        _accuracy(summary, content.images),
        _latency(summary, content.timings),
        _cost("MACs", summary, "macs", count, "multiply-adds for one image"),
        _cost("Parameters", summary, "params", count, ""),
        _cost("ONNX file", summary, "size_bytes", lambda size: shown(size / 1e6, ".3g", " MB"), ""),
    )


def change_of(before: float, after: float) -> str:
    """How much less or more in percent: ``−51.8 %``."""
    if not (before > 0 and math.isfinite(after)):
        return MISSING
    found = 100 * (after / before - 1)
    return f"{'−' if found < 0 else '+'}{abs(found):.1f} %"


def ratio_of(before: float, after: float, interval: Mapping[str, Any] | None = None) -> str:
    """How much faster or slower: ``2.47× faster``, with the interval of the speed-up ``2.47× faster (2.40–2.53)``."""
    if not (before > 0 and after > 0):
        return MISSING
    said = f"{before / after:.2f}× faster" if before >= after else f"{after / before:.2f}× slower"
    if interval is None:
        return said
    low, high = number(interval["low"]), number(interval["high"])
    if not (low > 0 and math.isfinite(high)):
        return said
    ends = (low, high) if before >= after else (1 / high, 1 / low)
    return f"{said} ({ends[0]:.2f}–{ends[1]:.2f})"


def _accuracy(summary: Mapping[str, Any], images: int) -> Tile:
    before, after = (number(summary[network].get("accuracy")) for network in ("dense", "slim"))
    points = 100 * (after - before)
    sign = "−" if points < 0 else "+"
    change = f"{sign}{abs(points):.2f} points" if math.isfinite(points) else MISSING
    note = f"top-1 on {images} test images"
    return Tile("Accuracy", percent(before), percent(after), change, points >= 0, None, note)


def _latency(summary: Mapping[str, Any], timings: Sequence[Mapping[str, Any]]) -> Tile:
    before, after = (latency(summary[network], "median") for network in ("dense", "slim"))
    spread = next((one for one in timings if one["name"] == "slim" and "p10" in one), None)
    note = "median on onnxruntime"
    if spread is not None:
        note += f"; 8 of 10 calls took {spread['p10']:.3f} to {spread['p90']:.3f} ms"
    interval = summary.get("speedup_interval")
    if interval is not None:
        note += f"; in brackets the {100 * interval['confidence']:g} % interval of the ratio"
    was, now = (shown(time, ".3f", " ms") for time in (before, after))
    return Tile("Latency", was, now, ratio_of(before, after, interval), after <= before, _share(before, after), note)


def _cost(name: str, summary: Mapping[str, Any], key: str, write: Callable[[float], str], note: str) -> Tile:
    before, after = (number(summary[network].get(key)) for network in ("dense", "slim"))
    change = change_of(before, after)
    return Tile(name, write(before), write(after), change, after <= before, _share(before, after), note)


def _share(before: float, after: float) -> float | None:
    """Percent, for the width of a bar."""
    found = 100 * after / before if before > 0 else math.nan
    return round(min(100.0, found), 1) if math.isfinite(found) else None
