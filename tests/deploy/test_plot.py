"""The picture of a benchmark, by what is in its text and where its bars end."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from curlfx.deploy import BenchEntry, BenchReport, BenchSettings, Latency, OnnxFile, Speedup, plot_bench
from curlfx.deploy.plot import _draw, _names
from curlfx.errors import ConfigError, OutputError


def report(*names):
    entries, first = [], None
    for place, name in enumerate(names):
        timings = (np.arange(1.0, 101.0) / (place + 1)).reshape(20, 5)
        first = timings if first is None else first
        speedup = Speedup.between(first, timings) if place else None
        file = OnnxFile(Path(name), 1, 18, {}, {}, {})
        entries.append(BenchEntry(file, Latency.of(timings), 1.0, speedup))
    about = {"cpu": "A $CPU$", "versions": {"onnxruntime": "1.2.3"}}
    return BenchReport(tuple(entries), BenchSettings(batch_size=4), 20, about, ())


def test_svg_says_what_was_measured(tmp_path):
    plot_bench(report("dense.onnx", "sl$i$m.onnx"), tmp_path / "a.svg")
    root = ET.parse(tmp_path / "a.svg").getroot()  # noqa: S314 our own file
    text = "|".join("".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text"))
    for part in (
        "dense.onnx",
        "sl$i$m.onnx",
        "50.5 ms",
        "25.2 ms, 2.00×",
        "p10 to p90",
        "1.2.3, cpu, batch 4",
        "A $CPU$",
    ):
        assert part in text
    plot_bench(report("dense.onnx", "sl$i$m.onnx"), tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


def test_bars_end_at_the_medians_and_whiskers_at_p10_and_p90():
    axes = Figure().add_subplot()
    _draw(axes, report("a", "b"))
    bars, whiskers = axes.containers[1], axes.containers[0]
    if not hasattr(bars, "patches"):
        bars, whiskers = whiskers, bars
    assert [bar.get_width() for bar in bars.patches] == [50.5, 25.25]
    segments = [segment[:, 0] for segment in whiskers[2][0].get_segments()]
    assert np.allclose(segments, [(10.9, 90.1), (5.45, 45.05)])


def test_files_of_one_name_are_told_apart():
    assert _names([Path("a/slim.onnx"), Path("a/dense.onnx")]) == ["slim.onnx", "dense.onnx"]
    assert _names([Path("a/slim.onnx"), Path("b/slim.onnx")]) == ["a/slim.onnx", "b/slim.onnx"]


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF")])
def test_other_formats(name, begin, tmp_path):
    plot_bench(report("a.onnx"), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.txt: want a name that ends in \.svg, \.png, \.pdf"):
        plot_bench(report("a.onnx"), tmp_path / "a.txt")
    with pytest.raises(OutputError, match=r"cannot write .*a\.svg: No such file"):
        plot_bench(report("a.onnx"), tmp_path / "absent" / "a.svg")
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(OutputError, match="folder or a device"):
        plot_bench(report("a.onnx"), tmp_path / "b.svg")
