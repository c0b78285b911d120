"""The fit that says how coupling grows, and one small measurement."""

import importlib
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    for name in ("scaling", "tables", "zoo"):  # programs import their neighbours by bare names
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("scaling")


def test_exponent_of_a_power_law(scaling):
    line = scaling.fit([100, 200, 400, 800], [2e-5 * nodes**1.25 for nodes in (100, 200, 400, 800)])
    assert line.exponent == pytest.approx(1.25)
    assert line.factor == pytest.approx(2e-5)
    assert line.half < 1e-6


def test_interval_holds_the_exponent_of_noisy_times(scaling):
    nodes = [100, 200, 400, 800, 1600]
    noise = [1.05, 0.97, 1.02, 0.95, 1.01]
    line = scaling.fit(nodes, [count * factor for count, factor in zip(nodes, noise, strict=True)])
    assert abs(line.exponent - 1) < line.half < 0.1
    # by hand: the slope of the logarithms
    x, y = [math.log(count) for count in nodes], [math.log(c * f) for c, f in zip(nodes, noise, strict=True)]
    mean_x, mean_y = sum(x) / 5, sum(y) / 5
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    assert line.exponent == pytest.approx(slope)


def test_kinds_are_fitted_apart(scaling):
    rows = [{"name": f"synthetic-{n}", "nodes": n, "couple_s": [n * 1e-4, n * 1e-4]} for n in (500, 1000, 2000)]
    assert set(scaling.fits(rows)) == {"synthetic networks", "all"}
    rows += [{"name": f"net{n}", "nodes": n, "couple_s": [1e-7 * n**2]} for n in (100, 200, 400)]
    assert scaling.fits(rows)["torchvision"].exponent == pytest.approx(2)


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
