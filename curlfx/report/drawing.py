"""The coupling graph as a picture: layers from top to bottom, every coupling group a coloured line beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from curlfx.coupling import Coupling
from curlfx.files import write_bytes
from curlfx.report.outline import Lane, Row, outline
from curlfx.report.templates import fill

COLOURS = (
    "#4e79a7", "#e15759", "#59a14f", "#f28e2b", "#b07aa1", "#17a2b8", "#9c755f", "#d4a300", "#ff6f91", "#6a5acd",
)  # fmt: skip
"""Neighbouring lanes get neighbouring colours, so these differ from one to the next."""

GREY = "#9a9a9a"
LINE, STEP, MARGIN, TOP = 18, 14, 14, 64
LETTER = 6.7
BAND = 12
"""A module with at most this many rows is one band; a larger one is cut into its children."""


def draw(coupling: Coupling, path: str | Path, *, title: str = "coupling") -> None:
    """Write the picture to an SVG file; the same coupling gives the same file.

    Raises: OutputError.
    """
    write_bytes(Path(path), svg(coupling, title).encode())


def svg(coupling: Coupling, title: str = "coupling") -> Markup:
    """The picture as SVG text. Everything has a tooltip: source lines, group ids, reasons.

    Units: pixels.
    """
    return picture(*outline(coupling), title)


def picture(rows: Sequence[Row], lanes: Sequence[Lane], title: str) -> Markup:
    """The same of an outline. Lanes that begin behind the last row are left out, longer ones end there."""
    lanes = [replace(lane, last=min(lane.last, len(rows) - 1)) for lane in lanes if lane.first < len(rows)]
    ink = _colours(lanes)
    number = {lane.id: place for place, lane in enumerate(lanes)}
    names = MARGIN * 2 + STEP * max((lane.column + 1 for lane in lanes), default=0)
    drawn = [_row(place, row, {lane.id: lane for lane in lanes}, ink, number) for place, row in enumerate(rows)]
    widths = names + LETTER * (2 + max((len(row["path"]) + len(row["name"]) for row in drawn), default=0))
    ops = widths + LETTER * (2 + max((len(row["widths"]) for row in drawn), default=0))
    width = ops + LETTER * max((len(row["op"]) for row in drawn), default=0) + MARGIN
    return fill(
        "drawing.svg.jinja",
        title=title,
        rows=drawn,
        lanes=[
            {"x": _x(lane), "top": _y(lane.first), "bottom": _y(lane.last), "colour": ink[lane.id], "text": lane.text}
            for lane in lanes
        ],
        bands=_bands(rows),
        names=names,
        widths=round(widths),
        ops=round(ops),
        width=round(max(width, 480)),
        height=_y(len(rows)) + MARGIN,
        margin=MARGIN,
        grey=GREY,
    )


def _row(place: int, row: Row, lanes: dict[str, Lane], ink: dict[str, str], number: dict[str, int]) -> dict[str, Any]:
    has = [lanes[name] for name in row.has]
    reads = [lanes[name] for name in row.reads]
    path, _, name = row.name.rpartition(".") if row.kind in ("layer", "carrier") else ("", "", "")
    also = f" + {', '.join(_short(one, row.name) for one in row.also)}" if row.also else ""
    return {
        "y": _y(place),
        "lanes": " ".join(str(number[name]) for name in row.lanes),
        "path": f"{path}." if path else "",
        "name": f"{name}{also}",
        "free": any(not lane.stays for lane in has),
        "widths": row.widths,
        "op": f"{row.op}  {row.where}".rstrip() if row.kind in ("join", "pin") else row.op,
        "title": _title(row, has),
        "links": [{"x": _x(a), "to": _x(b), "colour": ink[b.id]} for a in reads for b in has[:1] if a != b],
        "marks": [
            *({"shape": row.kind, "x": _x(lane), "colour": ink[lane.id]} for lane in has),
            *({"shape": "reads", "x": _x(lane), "colour": ink[lane.id]} for lane in reads),
        ],
    }


def _title(row: Row, has: Sequence[Lane]) -> str:
    place = ", ".join(filter(None, (row.op, row.where)))
    return "\n".join([f"{row.name} ({place})" if place else row.name, *(lane.text for lane in has)])


def _short(name: str, beside: str) -> str:
    """A module's name without what it shares with its neighbour."""
    path = beside.rpartition(".")[0]
    return name.removeprefix(f"{path}.") if path else name


def _colours(lanes: Iterable[Lane]) -> dict[str, str]:
    free = [lane.id for lane in lanes if not lane.stays]
    return {
        **{lane.id: GREY for lane in lanes if lane.stays},
        **{name: COLOURS[number % len(COLOURS)] for number, name in enumerate(free)},
    }


def _bands(rows: Sequence[Row]) -> list[dict[str, int]]:
    """Shaded stripes behind every other module."""
    modules = _modules([row.name if row.kind in ("layer", "carrier") else "" for row in rows])
    starts = [number for number in range(len(rows)) if not number or modules[number] != modules[number - 1]]
    ends = [*starts[1:], len(rows)]
    return [
        {"y": _y(start) - LINE // 2, "height": LINE * (end - start)}
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        if number % 2
    ]


def _modules(names: Sequence[str]) -> list[str]:
    """The band of every row: the largest module around it of at most `BAND` rows; ops stay with the row before."""
    sizes: dict[str, int] = {}
    for name in names:
        for module in _around(name):
            sizes[module] = sizes.get(module, 0) + 1
    found: list[str] = []
    for name in names:
        own = next((module for module in _around(name) if sizes[module] <= BAND), name)
        found.append(own if name else (found[-1] if found else ""))
    return found


def _around(name: str) -> list[str]:
    """Modules that a layer is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _x(lane: Lane) -> int:
    return MARGIN + STEP * lane.column


def _y(row: int) -> int:
    return TOP + LINE * row
