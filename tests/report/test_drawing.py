"""The picture of the coupling graph: its rows and lanes, and what the SVG says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from curlfx.coupling import Coupling, couple
from curlfx.graph.trace import trace
from curlfx.report.drawing import GREY, draw, picture, svg
from curlfx.report.outline import as_values, from_values, outline
from tests.networks.fixtures import FIXTURES

SVG = "{http://www.w3.org/2000/svg}"


@cache
def coupled(name: str) -> Coupling:
    case = FIXTURES[name]
    return couple(trace(case.build(), case.inputs()))


@pytest.mark.slow
def test_rows_of_a_residual_network() -> None:
    rows, _ = outline(coupled("basic_downsample"))
    told = [(row.kind, row.name, row.op, row.widths, row.also) for row in rows]
    assert told[:5] == [
        ("layer", "stem.0", "conv2d", "3 → 6", ("stem.1",)),
        ("layer", "body.stage1.0.conv1", "conv2d", "6 → 6", ("body.stage1.0.bn1",)),
        ("layer", "body.stage1.0.conv2", "conv2d", "6 → 6", ("body.stage1.0.bn2",)),
        ("join", "add_", "add_", "", ()),
        ("layer", "body.stage1.1.conv1", "conv2d", "6 → 6", ("body.stage1.1.bn1",)),
    ]
    assert (told[-1][0], told[-1][2]) == ("pin", "an output of the network")


def test_lanes_run_from_the_first_row_to_the_last() -> None:
    rows, lanes = outline(coupled("basic_downsample"))
    assert {lane.id for lane in lanes if not lane.stays} == {group.id for group in coupled("basic_downsample").groups}
    for lane in lanes:
        having = [number for number, row in enumerate(rows) if lane.id in row.lanes]
        assert (lane.first, lane.last) == (having[0], having[-1])
    longest = max(lanes, key=lambda lane: lane.last - lane.first)
    assert longest.column == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic_downsample", "inception", "attention_fused", "option_a", "grouped_conv"])
def test_lanes_that_overlap_have_columns_of_their_own(name: str) -> None:
    _, lanes = outline(coupled(name))
    for one in lanes:
        for other in lanes:
            if one is not other and one.first <= other.last and other.first <= one.last:
                assert one.column != other.column


@pytest.mark.slow
def test_the_svg_is_sound_and_always_the_same(tmp_path: Path) -> None:
    coupling = coupled("basic_downsample")
    text = svg(coupling, "<mine> & yours")
    case = FIXTURES["basic_downsample"]
    assert svg(couple(trace(case.build(), case.inputs())), "<mine> & yours") == text
    draw(coupling, tmp_path / "a.svg", title="<mine> & yours")
    assert (tmp_path / "a.svg").read_text() == text
    root = ET.fromstring(text)  # noqa: S314 - written a line above
    assert root.findtext(f"{SVG}title") == "<mine> & yours"
    shown = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert "stem.0 + 1" in shown
    assert "3 → 6" in shown
    tips = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert any(tip.startswith("stays (an output of the network): fc.weight[0]") for tip in tips)
    assert any("networks/joins.py:" in tip for tip in tips)


@pytest.mark.slow
def test_what_stays_is_grey() -> None:
    case = FIXTURES["basic_downsample"]
    root = ET.fromstring(svg(couple(trace(case.build(), case.inputs()), frozen=["*"])))  # noqa: S314
    dots = [element.get("fill") for element in root.iter(f"{SVG}circle")][2:]  # after the legend
    assert dots
    assert set(dots) <= {GREY, "#ffffff"}


def test_an_outline_comes_back_from_json() -> None:
    found = outline(coupled("basic_downsample"))
    assert from_values(json.loads(json.dumps(as_values(*found)))) == found


def test_rows_lead_to_their_lanes() -> None:
    rows, lanes = outline(coupled("basic_downsample"))
    root = ET.fromstring(picture(rows, lanes, "mine"))  # noqa: S314 - written by us
    texts = [path.findtext(f"{SVG}title") for path in root.iter(f"{SVG}path") if path.get("class") == "lane"]
    assert texts == [lane.text for lane in lanes]
    led = [group.get("data-lanes") for group in root.iter(f"{SVG}g") if group.get("class") == "row"]
    numbers = {lane.id: number for number, lane in enumerate(lanes)}
    assert led == [" ".join(str(numbers[name]) for name in row.lanes) for row in rows]


def test_the_first_rows_alone() -> None:
    rows, lanes = outline(coupled("basic_downsample"))
    root = ET.fromstring(picture(rows[:3], lanes, "mine"))  # noqa: S314 - written by us
    assert len([group for group in root.iter(f"{SVG}g") if group.get("class") == "row"]) == 3
    drawn = [path for path in root.iter(f"{SVG}path") if path.get("class") == "lane"]
    assert len(drawn) == len([lane for lane in lanes if lane.first < 3])
