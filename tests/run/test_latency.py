"""Jobs whose target is a latency: on onnxruntime as it is, and on one whose times are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from curlfx.deploy import LatencyTable, NodeTime, measure
from curlfx.deploy.latency_table import Sample
from curlfx.deploy.measure import Stopwatch
from curlfx.errors import BudgetError, ConfigError, TargetError
from curlfx.planning import SlimPlan
from curlfx.run import gradual
from curlfx.run.runner import RunResult, run
from tests.killed import Killed

Keep = Mapping[str, tuple[int, ...]]
PROBES = 14


@pytest.fixture
def job(tiny_job: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {
        **tiny_job, "limit": 40, "importance": "magnitude", "target": {"latency_ms": "60%"}, "latency_probes": PROBES,
        "round_to": 1, "floor": 0.1, "train": {"epochs": 0}, "recovery": {"epochs": 0}, "out": tmp_path / "run",
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Keep]:
    """Latency is that of the inner convolution, by its multiply-adds; narrow networks take a tenth more."""
    found: list[Keep] = []

    def sample(self: Stopwatch, keep: Keep, dense_ms: float | None) -> Sample:
        found.append(keep)
        alive = self.coupling.alive(keep)
        stem, inner = (int(alive[self.coupling.group(f"{name}.weight").channels].sum()) for name in ("stem", "inner"))
        shapes = (1, stem, 8, 8), (inner, stem, 3, 3)
        node = NodeTime("inner", "Conv", "CPUExecutionProvider", 1.0, (1, inner, 8, 8), shapes)
        slower = 1.1 if len(found) > 1 + PROBES else 1.0  # the table is measured first
        return Sample(alive, slower * (0.1 + stem * inner / 100), (node,))

    monkeypatch.setattr(Stopwatch, "sample", sample)
    monkeypatch.setattr(Stopwatch, "__enter__", lambda self: self)
    monkeypatch.setattr(Stopwatch, "dense_now", lambda self: 0.1 + 2.56)
    monkeypatch.setattr(measure, "_measure_odd_ones", lambda *given: None)
    return found


def state(found: RunResult) -> dict[str, Any]:
    done: dict[str, Any] = json.loads((found.directory / "state.json").read_text())["done"]["plan"]
    return done.get("result", done)


@pytest.mark.slow
def test_a_job_on_onnxruntime(job: dict[str, Any]) -> None:
    """The whole of the dense latency is a target that every machine reaches."""
    found = run({**job, "target": {"latency_ms": "100%"}, "latency_probes": 3})
    plan = SlimPlan.load(found.directory / "plan.json")
    assert plan.target == {"latency_ms": "100%"}
    assert plan.allocation == "knapsack"
    measured = state(found)["latency"]
    assert measured["limit_ms"] == pytest.approx(measured["dense_ms"])
    assert found.summary["target"] == {"latency_ms": "100%"}
    (file,) = (found.directory / "checkpoints" / "latency").iterdir()
    table = LatencyTable.load(file)
    assert len(table.samples) == 4
    assert table.complete
    assert table.dense_ms > 0


@pytest.mark.slow
def test_the_plan_is_measured(job: dict[str, Any], asked: list[Keep]) -> None:
    found = run(job)
    plan = SlimPlan.load(found.directory / "plan.json")
    assert (plan.target, plan.allocation, plan.per) == ({"latency_ms": "60%"}, "knapsack", "channel")
    measured = state(found)["latency"]
    dense = 0.1 + 2.56
    assert measured["dense_ms"] == pytest.approx(dense)
    assert measured["limit_ms"] == pytest.approx(0.6 * dense)
    ms = 1.1 * (0.1 + plan.widths["stem.weight"] * plan.widths["inner.weight"] / 100)
    assert measured["measured_ms"] == pytest.approx(ms)
    assert measured["met"] is True
    assert ms <= 1.01 * 0.6 * dense
    assert len(measured["attempts"]) == len(asked) - 1 - PROBES
    assert measured["prediction_error"]["networks"] == PROBES
    assert measured["prediction_error"]["median"] < 1e-6
    assert state(found)["dense"]["latency_ms"] > state(found)["slim"]["latency_ms"] > 0
    log = (found.directory / "log.txt").read_text()
    assert "latency table: dense 2.66 ms; networks left out of the fit are predicted with an error of 0.0%" in log
    assert f"latency: {ms:.3g} ms of 1.6 ms" in log


@pytest.mark.slow
def test_what_a_search_finds_is_measured_and_corrected(job: dict[str, Any], asked: list[Keep]) -> None:
    plain = {name: value for name, value in job.items() if name not in ("round_to", "floor")}
    search = {
        "enabled": True, "least": 0.25, "step": 0.05, "divisor": 1, "population": 5, "parents": 2, "mutants": 2,
        "crossovers": 2, "generations": 2, "calibration_batches": 1, "held_out": 0.2, "cuts": [], "controls": True,
        "train": {"epochs": 1, "batch_size": 16},
    }  # fmt: skip
    found = run({**plain, "search": search})
    plan, limit = SlimPlan.load(found.directory / "plan.json"), 0.6 * (0.1 + 2.56)
    assert (plan.target, plan.allocation) == ({"latency_ms": "60%"}, "search")
    measured = state(found)["latency"]
    ms = 1.1 * (0.1 + plan.widths["stem.weight"] * plan.widths["inner.weight"] / 100)
    assert measured["measured_ms"] == pytest.approx(ms)
    assert measured["met"] is True
    assert 0.95 * 0.97 * limit <= ms <= 1.03 * limit
    predicted, first = measured["attempts"][0]
    assert predicted <= limit < first  # the table does not know what narrow networks really take
    assert len(measured["attempts"]) == len(asked) - 1 - PROBES > 1
    assert found.summary["latency"]["measured_ms"] == measured["measured_ms"]
    record = json.loads((found.directory / "search.json").read_text())
    assert record["best"]["widths"] == plan.widths


@pytest.mark.slow
def test_scores_per_millisecond_are_ranked(job: dict[str, Any], asked: list[Keep]) -> None:
    found = run({**job, "per": "latency", "target": {"latency_ms": "60%", "params": "90%"}})
    plan = SlimPlan.load(found.directory / "plan.json")
    assert (plan.allocation, plan.per) == ("global", "latency")
    assert plan.after.params <= 0.9 * plan.before.params
    assert state(found)["latency"]["met"] is True


@pytest.mark.slow
def test_a_killed_table_goes_on(job: dict[str, Any], asked: list[Keep], monkeypatch: pytest.MonkeyPatch) -> None:
    take = Stopwatch.sample

    def sample(self: Stopwatch, keep: Keep, dense_ms: float | None) -> Sample:
        if len(asked) == 3:
            raise Killed
        return take(self, keep, dense_ms)

    monkeypatch.setattr(Stopwatch, "sample", sample)
    with pytest.raises(Killed):
        run(job)
    monkeypatch.setattr(Stopwatch, "sample", take)
    found = run({"resume": job["out"]})
    assert asked[0] == {}
    assert [bool(keep) for keep in asked[: 1 + PROBES]] == [False, *[True] * PROBES]  # nothing twice
    assert state(found)["latency"]["met"] is True


@pytest.mark.slow
def test_a_target_that_is_missed_ends_the_run(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: list[Keep]
) -> None:
    take = Stopwatch.sample

    def sample(self: Stopwatch, keep: Keep, dense_ms: float | None) -> Sample:
        found = take(self, keep, dense_ms)
        return found if len(asked) <= 1 + PROBES else Sample(found.alive, 2.0, found.nodes)  # whatever the plan

    monkeypatch.setattr(Stopwatch, "sample", sample)
    with pytest.raises(BudgetError, match=r"plans was measured at 2 ms of 1\.6 ms; raise the target"):
        run(job)
    monkeypatch.setattr(Stopwatch, "sample", take)  # the machine is idle again
    assert state(run({"resume": job["out"]}))["latency"]["met"] is True


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"target": {"macs": "60%"}, "per": "latency"}, ConfigError, "per = latency: needs a latency"),
        ({"iterative_steps": 2}, ConfigError, "iterative_steps = 2: a latency is met by measuring"),
        ({"bench": {"provider": "abacus"}}, ConfigError, "abacus"),
        ({"target": {"latency_ms": "0%"}}, TargetError, "target latency_ms = 0%: out of range"),
        ({"target": {"latency_ms": "60%", "macs": "0.1%"}}, BudgetError, "macs 0.1 % of dense cannot be reached"),
    ],
)
def test_refused_before_anything_is_measured(
    job: dict[str, Any], asked: list[Keep], changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        run({**job, **changes})
    assert asked == []
    assert not job["out"].exists()


def test_out_of_reach(job: dict[str, Any], asked: list[Keep]) -> None:
    """Known only when the table is there."""
    with pytest.raises(BudgetError, match=r"latency_ms 1 % of dense cannot be reached: the least is"):
        run({**job, "target": {"latency_ms": "1%"}})
    assert len(asked) == 1 + PROBES


@pytest.mark.slow
def test_a_training_stops_at_a_latency(job: dict[str, Any], asked: list[Keep], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table, which is measured before the training and not again after a kill."""
    training = {"train": {"epochs": 3}, "gradual": {"interval": 1, "last": 2}}
    fit = gradual.fit

    def killed(*given: Any, **named: Any) -> Any:
        raise Killed

    monkeypatch.setattr(gradual, "fit", killed)
    with pytest.raises(Killed):
        run({**job, **training})
    assert len(asked) == 1 + PROBES
    monkeypatch.setattr(gradual, "fit", fit)
    found = run({"resume": job["out"]})
    assert len(asked) == 1 + PROBES
    assert found.summary["gradual"]["reached"] is True
    plan = SlimPlan.load(found.directory / "plan.json")
    assert plan.target == {"latency_ms": "60%"}
    dense, left = (0.1 + stem * inner / 100 for stem, inner in ((16, 16), _inner(plan)))
    assert plan.before.latency_ms == pytest.approx(dense)
    assert plan.after.latency_ms == pytest.approx(left)
    assert left <= 0.6 * dense
    assert "of the MACs and, by the latency table, " in (found.directory / "log.txt").read_text()


def test_a_training_without_free_channels_is_refused(job: dict[str, Any], asked: list[Keep]) -> None:
    training = {"train": {"epochs": 3}, "gradual": {"interval": 1, "last": 2}, "ignored_layers": ["*"]}
    with pytest.raises(BudgetError, match="latency_ms: no channel of this network can go"):
        run({**job, **training})
    assert asked == []
    assert not job["out"].exists()


def _inner(plan: SlimPlan) -> tuple[int, int]:
    return plan.widths.get("stem.weight", 16), plan.widths.get("inner.weight", 16)
