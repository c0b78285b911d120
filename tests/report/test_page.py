"""What is on the page: every number as it was found, nothing that could run, and no part without its data."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from curlfx.report.accuracy import stations
from curlfx.report.charts.figure import MOST_ROWS
from curlfx.report.layers import COLUMNS
from curlfx.report.page import render
from curlfx.report.tiles import change_of, ratio_of, tiles
from tests.report.example import CHARTS, SUMMARY, example, timing

EVIL = "</title><script>alert('1')</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Tags, attributes and texts of a page; ``charts`` are the texts of every figure, by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.charts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._chart = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "figure":
            self._chart = (dict(attrs)["id"] or "").removeprefix("chart-")
            self.charts[self._chart] = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "figure":
            self._chart = ""

    def handle_data(self, data: str) -> None:
        if self._chart and data.strip():
            self.charts[self._chart].append(data.strip())


def without(summary: dict[str, Any], key: str) -> dict[str, Any]:
    """A summary in which neither network has ``key``."""
    return {**summary, **{name: {**summary[name], key: None} for name in ("dense", "slim")}}


def test_all_charts_are_there_and_the_page_repeats_itself() -> None:
    text = render(example())
    assert tuple(Page(text).charts) == CHARTS
    assert render(example()) == text


def test_nothing_is_fetched_and_only_the_script_of_the_page_may_run() -> None:
    text = render(example())
    assert re.search(r"\b(src|href)\s*=", text) is None
    assert "url(" not in text
    assert "@import" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert Page(text).tags.count("script") == 1


@pytest.mark.slow
def test_whatever_comes_from_outside_is_escaped() -> None:
    plain = Page(render(example()))
    content = example()
    outline = content.outline or {}
    named = [{**row, "name": EVIL, "op": EVIL, "where": EVIL} for row in outline["rows"]]
    lanes = [{**lane, "text": EVIL} for lane in outline["lanes"]]
    search = content.search or {}
    group = content.groups[0]["id"]
    evil = example(
        summary={**content.summary, "model": EVIL, "importance": EVIL, "target": {EVIL: EVIL}, "device": {EVIL: EVIL}},
        layers=[{**row, "layer": EVIL, "groups": EVIL, "frozen": EVIL} for row in content.layers],
        groups=[{**content.groups[0], "id": EVIL}, *content.groups[1:]],
        scores={**content.scores, EVIL: content.scores[group]},
        frozen=[{"site": EVIL, "width": 1, "reason": EVIL, "node": EVIL}],
        checks=[{"name": EVIL, "error": 0.0, "bound": 1.0}],
        notes=[EVIL], measurement=EVIL, config=EVIL, command=EVIL, remarks=[EVIL],
        widths=[{**one, "layer": EVIL} for one in content.widths],
        outline={"rows": named, "lanes": lanes},
        timings=[timing(EVIL, 1.0)],
        operators={EVIL: [{"op_type": EVIL, "milliseconds": 1.0, "share": 1.0, "nodes": 1}]},
        search={**search, "controls": {EVIL: search["controls"]["uniform"]}, "proxy": EVIL},
    )  # fmt: skip
    page = Page(render(evil))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert {name for name, _ in page.attributes} <= {name for name, _ in plain.attributes}
    assert set(page.tags) == set(plain.tags)


def test_the_page_escapes_what_it_shows() -> None:
    page = render(example())
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<b>mine" not in page
    assert "a note &amp; more" in page


@pytest.mark.slow
@pytest.mark.parametrize("nothing", [None, math.nan])
def test_without_accuracy(nothing: float | None) -> None:
    summary = without(SUMMARY, "accuracy")
    summary = {**summary, "recovery": {**summary["recovery"], "accuracy_before": nothing, "accuracy_after": {}}}
    summary["slim"]["accuracy"] = nothing
    page = Page(render(example(summary=summary, epochs=(), search=None)))
    assert not {"stations", "epochs", "controls"} & page.charts.keys()
    found = tiles(example(summary=summary))[0]
    assert (found.name, found.before, found.after, found.change) == ("Accuracy", "–", "–", "–")


def test_without_latency() -> None:
    content = example(summary=without(SUMMARY, "latency_ms"), timings=(), operators={}, measurement="")
    assert not {"latency", "operators", "attempts"} & Page(render(content)).charts.keys()
    assert (tiles(content)[1].after, tiles(content)[1].change, tiles(content)[1].share) == ("–", "–", None)


def test_numbers_that_are_none() -> None:
    """NaN anywhere is a dash or a gap, and never ends in the SVG."""
    content = example()
    broken = [{**one, "validation": math.nan if one["epoch"] == 2 else one["validation"]} for one in content.epochs]
    search = {**(content.search or {}), "history": [math.nan, 0.5]}
    text = render(
        example(
            epochs=broken,
            search=search,
            scores={name: [math.nan, *values[1:]] for name, values in content.scores.items()},
            timings=[timing("dense", math.nan), timing("slim", 0.5)],
            checks=[{"name": "torch vs onnx", "error": math.nan, "bound": 1e-4}],
        )
    )
    marks = re.findall(r'(?:\bd|points|x|y|width|height|style)="([^"]*)"', text)
    assert marks
    assert not [mark for mark in marks if "nan" in mark or "inf" in mark]
    (curve,) = re.findall(
        r'class="curve slim" d="([^"]*)"', text.partition('id="chart-epochs"')[2].partition("</svg>")[0]
    )
    assert curve.count("M") == 2
    assert re.search(r"torch vs onnx<td>–<td>1e-04<td class=\"text\">FAILED", text) is not None


def test_bare() -> None:
    """What a run directory of an earlier version has."""
    names = ("widths", "scores", "keep", "epochs", "operators", "remarks")
    content = example(**dict.fromkeys(names, ()), outline=None, search=None, command="", summary=SUMMARY, frozen=())
    page = Page(render(content))
    assert tuple(page.charts) == ("stations", "latency", "macs", "seconds")


def test_no_channel_is_free() -> None:
    page = render(example(groups=[], scores={}))
    assert "No channel of this network is free to go." in page
    assert "chart-scores" not in page


def test_one_layer() -> None:
    content = example()
    page = Page(
        render(
            example(
                layers=content.layers[:1],
                groups=content.groups[:1],
                widths=content.widths[:1],
                outline={"rows": (content.outline or {})["rows"][:1], "lanes": (content.outline or {})["lanes"]},
                epochs=content.epochs[:1],
            )
        )
    )
    assert "conv1: 64 → 32" in page.charts["widths"]
    assert set(page.charts) == set(CHARTS)


@pytest.mark.slow
def test_a_thousand_layers_still_open_on_a_phone() -> None:
    count = 1000
    names = [f"backbone.stage{n // 100}.block{n % 100}.convolution.weight" for n in range(count)]
    shapes = {"shape_before": "512x512x3x3", "shape_after": "256x256x3x3", "frozen": ""}
    numbers = {
        "params_before": "2359296",
        "params_after": "589824",
        "macs_before": "115605504",
        "macs_after": "28901376",
    }
    outline = {
        "rows": [
            {
                "kind": "layer", "name": name.removesuffix(".weight"), "op": "conv2d", "where": "models/backbone.py:12",
                "reads": (names[place - 1],) if place else (), "has": (name,), "widths": "512 → 512", "also": ("norm",),
            }
            for place, name in enumerate(names)
        ],
        "lanes": [
            {
                "id": name, "stays": False, "text": f"group {name}, 512 channels, 6 sites", "first": place,
                "last": min(place + 1, count - 1), "column": place % 2,
            }
            for place, name in enumerate(names)
        ],
    }  # fmt: skip
    content = example(
        layers=[{"layer": name, "groups": f"axis 0: {name}", **shapes, **numbers} for name in names for _ in range(3)],
        groups=[{"id": name, "members": 6, "width": 512, "kept": 256} for name in names],
        widths=[{"layer": name, "before": 512, "after": 256} for name in names],
        scores={name: [1.0 / n for n in range(1, 513)] for name in names},
        keep={name: range(256) for name in names},
        frozen=[{"site": name, "width": 1, "reason": "an output of the network", "node": "output"} for name in names],
        outline=outline,
    )
    text = render(content)
    assert len(text.encode()) < 3_000_000
    assert Page(text).tags.count("tr") < 10 * MOST_ROWS
    assert "2000 more rows are left out here and are in layers.csv." in text


def test_charts_say_what_was_found() -> None:
    content = example()
    charts = Page(render(content)).charts
    for one in content.widths:
        assert f"{one['layer']}: {one['before']} → {one['after']}" in charts["widths"]
    assert charts["stations"][1:7] == ["dense", "98.00 %", "straight after slimming", "50.00 %", "recovered", "75.00 %"]
    assert "recovery, epoch 5: 96.00 %" in charts["epochs"]
    assert "straight after slimming: 50.00 %" in charts["epochs"]
    assert "control uniform, epoch 5: 95.00 %" in charts["epochs"]
    assert {"0.500 ms", "1.000 ms", "0.300 ms"} <= set(charts["latency"])
    assert any("95 % interval 1.95 to 2.05" in text for text in charts["latency"])
    assert {"Conv (NCHWc)", "0.900 ms", "0.400 ms", "ReorderInput", "0.100 ms"} <= set(charts["operators"])
    assert {"found", "97.00 %", "uniform", "95.00 %", "random", "94.00 %"} <= set(charts["controls"])
    assert any(text.startswith("found: MACs 900 k, proxy 0.50000") for text in charts["front"])
    assert "after epoch 4: 50.0 % of the MACs" in charts["steps"]
    assert {"predicted", "0.550 ms", "measured", "0.460 ms", "target", "0.500 ms"} <= set(charts["attempts"])
    assert {"32 of 64", "64 of 128"} <= set(charts["scores"])
    assert any("group conv1.weight, 64 channels" in text for text in charts["coupling"])


@pytest.mark.slow
def test_columns_are_as_high_as_the_numbers() -> None:
    text = render(example()).partition('id="chart-widths"')[2].partition("</figure>")[0]
    heights = [[int(one) for one in re.findall(r'class="(?:dense|slim)" d="M\d+ 1000v-(\d+)', mark)] for mark in
               re.findall(r"<g>.*?</g>", text)]  # fmt: skip
    assert len(heights) == len(example().widths)
    top = max(one["before"] for one in example().widths)
    unit = max(height for height, _ in heights) / top
    for one, (before, after) in zip(example().widths, heights, strict=True):
        assert before == pytest.approx(one["before"] * unit, abs=1)
        assert after == pytest.approx(one["after"] * unit, abs=1)


def test_a_training_goes_on_where_the_one_before_ended() -> None:
    text = render(example()).partition('id="chart-epochs"')[2].partition("</svg>")[0]
    curves = dict(re.findall(r'class="curve (\w+)(?: dashed)?" d="M([^"]*)"', text))
    assert [len(curves[name].split("L")) for name in ("c6", "c3", "slim", "c5")] == [8, 1 + 3, 1 + 5, 1 + 4]
    assert curves["slim"].split("L")[0] == curves["c3"].split("L")[-1]
    assert curves["c3"].split("L")[0].split()[0] == curves["c6"].split("L")[-1].split()[0]


def test_stations_end_with_the_result() -> None:
    assert stations(SUMMARY) == [
        ("dense", 0.98), ("straight after slimming", 0.5), ("recovered", 0.75), ("slim", 0.97),
    ]  # fmt: skip
    bare = {**SUMMARY, "recovery": {"accuracy_before": 0.97, "accuracy_after": {"recover": None}}}
    assert stations(bare) == [("dense", 0.98), ("straight after slimming", 0.97)]


def test_tiles() -> None:
    found = {tile.name: tile for tile in tiles(example())}
    assert list(found) == ["Accuracy", "Latency", "MACs", "Parameters", "ONNX file"]
    assert (found["Accuracy"].before, found["Accuracy"].after) == ("98.00 %", "97.00 %")
    assert (found["Accuracy"].change, found["Accuracy"].good) == ("−1.00 points", False)
    assert (found["MACs"].after, found["MACs"].change, found["MACs"].share) == ("1 M", "−50.0 %", 50.0)
    assert (found["Latency"].change, found["Latency"].good) == ("2.00× faster (1.95–2.05)", True)
    assert found["Latency"].note.endswith("; in brackets the 95 % interval of the ratio")
    assert "8 of 10 calls took 0.450 to 0.600 ms" in found["Latency"].note
    assert change_of(10, 11) == "+10.0 %"
    assert change_of(0, 1) == "–"
    assert ratio_of(1.0, 2.0) == "2.00× slower"
    assert ratio_of(math.nan, 2.0) == "–"


def test_the_interval_of_a_speed_up() -> None:
    ends = {"low": 0.4, "high": 0.5, "confidence": 0.95}
    assert ratio_of(1.0, 2.0, ends) == "2.00× slower (2.00–2.50)"
    assert ratio_of(1.0, 2.0, {**ends, "low": math.nan}) == "2.00× slower"
    assert '<span class="chip good">2.00× faster (1.95–2.05)</span>' in render(example())


@pytest.mark.slow
def test_a_summary_of_an_earlier_version_has_no_interval() -> None:
    older = {key: value for key, value in example().summary.items() if key != "speedup_interval"}
    latency = tiles(example(summary=older))[1]
    assert latency.change == "2.00× faster"
    assert latency.note == "median on onnxruntime; 8 of 10 calls took 0.450 to 0.600 ms"
    assert "2.00× faster</span>" in render(example(summary=older))


def test_a_failed_verification_is_seen() -> None:
    summary = {**SUMMARY, "verification": {**SUMMARY["verification"], "passed": False}}
    page = render(example(summary=summary))
    assert '<span class="badge bad">verification FAILED</span>' in page
    assert '<span class="badge good">verified</span>' in render(example())


def test_every_column_of_the_layers_is_shown() -> None:
    page = render(example())
    assert all(f">{key.replace('_', ' ')}" in page for key in COLUMNS)
