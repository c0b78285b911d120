"""The fit that says how coupling grows, and one small measurement."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    for name in ("scaling", "tables", "zoo"):  # programs import their neighbours by bare names
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("scaling")


def test_exponents_of_a_power_law(scaling):
    nodes, width = [100, 200, 400, 800, 1600], [3, 1, 4, 1, 5]
    line = scaling.fit([2e-5 * n**1.25 * w**0.5 for n, w in zip(nodes, width, strict=True)], nodes, width)
    assert line.exponents == pytest.approx((1.25, 0.5))
    assert line.factor == pytest.approx(2e-5)
    assert max(line.halves) < 1e-6


def test_interval_is_that_of_a_regression(scaling):
    nodes = [100, 200, 400, 800, 1600]
    seconds = [n * factor for n, factor in zip(nodes, [1.05, 0.97, 1.02, 0.95, 1.01], strict=True)]
    line = scaling.fit(seconds, nodes)
    expected = stats.linregress(np.log(nodes), np.log(seconds))
    assert line.exponents == pytest.approx((expected.slope,))
    assert line.halves == pytest.approx((stats.t.ppf(0.975, 3) * expected.stderr,))
    assert abs(line.exponents[0] - 1) < line.halves[0] < 0.1


def test_width_and_nodes_are_told_apart(scaling):
    def row(name, nodes, channels):
        return {"name": name, "nodes": nodes, "channels": channels, "couple_s": [1e-6 * nodes * channels / nodes]}

    rows = [row(f"synthetic-{n}", n, 2 * n) for n in (500, 1000, 2000)]
    assert list(scaling.fits(rows)) == [scaling.SYNTHETIC_FIT]
    rows += [row("wide", 100, 90000), row("wider", 150, 200000)]
    lines = scaling.fits(rows)
    assert lines[scaling.SYNTHETIC_FIT].exponents == pytest.approx((1.0,))
    assert lines[scaling.JOINT_FIT].exponents == pytest.approx((1.0, 1.0))


@pytest.mark.slow
def test_measures_a_synthetic_network(scaling, monkeypatch):
    monkeypatch.setattr(
        scaling, "subjects", lambda: {"small": scaling.Subject(lambda: scaling.Synthetic(1), (3, 8, 8))}
    )
    row = scaling.measure("small", repeat=2)
    assert row["nodes"] > 40
    assert row["channels"] > 0
    assert len(row["couple_s"]) == 2
    assert 0 < row["python_bytes"] < 2**26
    assert "small" in scaling.table([row])
