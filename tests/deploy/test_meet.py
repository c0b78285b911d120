"""Plans until one is measured at the target, on a runtime whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import pytest
import torch
from torch import nn

from curlfx.cost.counting import Alive
from curlfx.coupling import Coupling, couple
from curlfx.deploy import LatencyTable, NodeTime, TableSettings, meet, plan_for_latency
from curlfx.deploy.latency_table import Sample
from curlfx.deploy.meet import MeasuredPlan
from curlfx.errors import BudgetError, PlanError, TargetError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning.probes import random_widths

WIDTHS = (3, 64, 96, 80, 5)
Subject = tuple[TracedModel, Coupling, Scores]
Runtime = Callable[[Alive], float]


@pytest.fixture(scope="module")
def subject() -> Subject:
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(WIDTHS)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    return traced, coupling, score(traced, coupling, "random", seed=0)


def channels(coupling: Coupling, alive: Alive) -> list[int]:
    return [WIDTHS[0], *(int(alive[group.channels].sum()) for group in coupling.groups), WIDTHS[-1]]


def nodes(coupling: Coupling, alive: Alive) -> tuple[NodeTime, ...]:
    """The convolutions, with times by their multiply-adds."""
    return tuple(
        NodeTime(
            f"conv{layer}",
            "Conv",
            "CPUExecutionProvider",
            0.01 + a * b / 1e3,
            (1, b, 8, 8),
            ((1, a, 8, 8), (b, a, 3, 3)),
        )
        for layer, (a, b) in enumerate(pairwise(channels(coupling, alive)))
    )


def true_ms(coupling: Coupling, alive: Alive) -> float:
    return sum(node.milliseconds for node in nodes(coupling, alive))


def filled(coupling: Coupling, **about: Any) -> LatencyTable:
    table = LatencyTable(about)
    for keep in ({}, *random_widths(coupling, 16, round_to=1, seed=0)):
        alive = coupling.alive(keep)
        table.samples.append(Sample(alive, true_ms(coupling, alive), nodes(coupling, alive)))
    return table


class Fake:
    """A stopwatch that reads `milliseconds` off a keep set, and remembers with what it was made and asked."""

    def __init__(self, milliseconds: Runtime) -> None:
        self.milliseconds = milliseconds
        self.asked: list[Mapping[str, tuple[int, ...]]] = []
        self.dense: list[float | None] = []
        self.settings: TableSettings | None = None
        self.now = 1.0  # how much slower the machine has become

    def __call__(self, traced: TracedModel, coupling: Coupling, settings: TableSettings) -> Self:
        self.traced, self.coupling, self.settings = traced, coupling, settings
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def dense_now(self) -> float:
        return self.now * true_ms(self.coupling, self.coupling.alive({}))

    def sample(self, keep: Mapping[str, tuple[int, ...]], dense_ms: float | None) -> Sample:
        self.asked.append(keep)
        self.dense.append(dense_ms)
        alive = self.coupling.alive(keep)
        return Sample(alive, self.milliseconds(alive), nodes(self.coupling, alive))


def meeting(
    monkeypatch: pytest.MonkeyPatch,
    subject: Subject,
    runtime: Runtime,
    target: Mapping[str, Any],
    **options: Any,
) -> tuple[MeasuredPlan, Fake, LatencyTable]:
    fake, table = Fake(runtime), filled(subject[1])
    monkeypatch.setattr(meet, "Stopwatch", fake)
    return plan_for_latency(*subject, target, table, round_to=1, floor=0.0, **options), fake, table


@pytest.mark.slow
@pytest.mark.parametrize("target", ["70%", "50%", "30%"])
@pytest.mark.parametrize("error", [0.8, 0.95, 1.1, 1.25, 1.5])
def test_a_table_that_is_wrong_everywhere_is_put_right(
    monkeypatch: pytest.MonkeyPatch, subject: Subject, target: str, error: float
) -> None:
    _, coupling, _ = subject
    found, fake, table = meeting(
        monkeypatch, subject, lambda alive: error * true_ms(coupling, alive), {"latency_ms": target}
    )
    share = float(target.rstrip("%")) / 100
    assert found.limit_ms == pytest.approx(share * found.dense_ms)
    assert found.dense_ms == true_ms(coupling, coupling.alive({}))
    assert found.met
    assert 0.97 <= found.measured_ms / found.limit_ms <= 1.01
    assert found.measured_ms == pytest.approx(error * true_ms(coupling, coupling.alive(found.plan.keep)))
    assert [attempt.plan.keep for attempt in found.attempts] == fake.asked
    assert len(found.attempts) <= 4
    assert fake.closed
    assert fake.dense == [found.dense_ms] * len(fake.asked)
    assert found.plan.target == {"latency_ms": target}
    assert (found.plan.allocation, found.plan.per) == ("knapsack", "channel")
    assert len(table.samples) == 17 + len(found.attempts) - 1
    first = found.attempts[0]
    assert first.predicted_ms <= found.limit_ms * (1 + 1e-9)
    assert first.measured_ms == pytest.approx(error * first.predicted_ms, rel=1e-6)


@pytest.mark.slow
def test_what_is_right_at_once_is_measured_once(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    traced, coupling, _ = subject
    runtime: Runtime = lambda alive: true_ms(coupling, alive)  # noqa: E731
    limit = 0.6 * true_ms(coupling, coupling.alive({}))
    for amount in ("60%", limit, f"{limit:.9f}"):
        found, fake, _ = meeting(monkeypatch, subject, runtime, {"latency_ms": amount})
        assert len(fake.asked) == 1
        assert found.limit_ms == pytest.approx(limit)
        assert found.plan.target == {"latency_ms": amount}
        found.plan.check(traced, coupling)
        assert found.plan.after.latency_ms == pytest.approx(found.measured_ms)


def test_other_bounds_hold_too(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    _, coupling, _ = subject
    target = {"latency_ms": "60%", "params": "40%"}
    found, _, _ = meeting(monkeypatch, subject, lambda alive: 1.2 * true_ms(coupling, alive), target)
    assert found.plan.after.params <= 0.4 * found.plan.before.params
    assert found.measured_ms <= 1.01 * found.limit_ms
    assert found.met  # far below, which the parameters ask for


def test_the_allocation_goes_by_per(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    _, coupling, _ = subject
    for options, want in (
        ({"per": "latency"}, ("global", "latency")),
        ({"allocation": "greedy"}, ("greedy", "channel")),
        ({"allocation": "uniform"}, ("uniform", "channel")),
    ):
        found, _, _ = meeting(
            monkeypatch, subject, lambda alive: 1.1 * true_ms(coupling, alive), {"latency_ms": "60%"}, **options
        )
        assert (found.plan.allocation, found.plan.per) == want
        assert found.met


def test_the_same_plan_again_ends_it(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    """Widths in steps of 32 leave no plan between this one and the target: the second answer is the first one."""
    _, coupling, _ = subject
    fake = Fake(lambda alive: 0.9 * true_ms(coupling, alive))
    monkeypatch.setattr(meet, "Stopwatch", fake)
    found = plan_for_latency(*subject, {"latency_ms": "20%"}, filled(coupling), round_to=32, floor=0.0)
    assert len(found.attempts) == len(fake.asked) == 1
    assert found.met  # below the target, as near as these widths come
    assert found.measured_ms < 0.97 * found.limit_ms


@pytest.mark.slow
def test_a_runtime_that_never_meets_it_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    """Every narrow network takes half of the dense one's time, whatever its widths."""
    _, coupling, _ = subject
    dense = true_ms(coupling, coupling.alive({}))
    found, fake, _ = meeting(monkeypatch, subject, lambda alive: 0.5 * dense, {"latency_ms": "40%"})
    assert not found.met
    assert found.measured_ms == 0.5 * dense
    assert 1 <= len(fake.asked) <= meet.ROUNDS
    assert len(found.attempts) == len(fake.asked)


@pytest.mark.slow
def test_the_best_of_all_attempts_is_taken(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    """Nearest from below before nearest from above."""
    _, coupling, _ = subject
    limit = 0.5 * true_ms(coupling, coupling.alive({}))

    def best(ratios: Sequence[float]) -> float:
        given = iter(ratios)
        found, _, _ = meeting(
            monkeypatch, subject, lambda alive: limit * next(given, ratios[-1]), {"latency_ms": "50%"}
        )
        place = [attempt.plan for attempt in found.attempts].index(found.plan)
        assert found.attempts[place].measured_ms == found.measured_ms
        assert found.met == (found.measured_ms <= 1.03 * limit)
        return found.measured_ms / limit

    assert best([1.2, 0.9, 0.94, 1.05, 1.1, 1.02]) == pytest.approx(0.94)
    assert best([1.2, 1.05, 1.3, 1.4, 1.5, 1.6]) == pytest.approx(1.05)
    assert best([1.2, 0.99]) == pytest.approx(0.99)


def test_unreachable(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    _, coupling, _ = subject
    fake = Fake(lambda alive: true_ms(coupling, alive))
    monkeypatch.setattr(meet, "Stopwatch", fake)
    with pytest.raises(BudgetError, match=r"latency_ms 10 % of dense cannot be reached: the least is"):
        plan_for_latency(*subject, {"latency_ms": "10%"}, filled(coupling), floor=0.5)
    assert fake.asked == []
    assert fake.closed


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ({"macs": "50%"}, "want latency_ms among them, like"),
        ({}, "want latency_ms among them, like"),
        ({"latency_ms": "0%"}, "target latency_ms = 0%: out of range"),
        ({"latency_ms": -1.0}, "out of range"),
        ({"latency_ms": 1e6}, "at most the dense network's"),
        ({"latency_ms": "fast"}, "want a share"),
    ],
)
def test_targets_that_mean_nothing(subject: Subject, target: dict[str, Any], match: str) -> None:
    with pytest.raises(TargetError, match=match):
        plan_for_latency(*subject, target, filled(subject[1]))


def test_it_is_measured_as_the_table_was(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    _, coupling, _ = subject
    fake = Fake(lambda alive: true_ms(coupling, alive))
    monkeypatch.setattr(meet, "Stopwatch", fake)
    table = filled(coupling, provider="cpu", threads=3, batch_size=4, seed=9)
    plan_for_latency(*subject, {"latency_ms": "60%"}, table, round_to=1)
    assert fake.settings == TableSettings(threads=3, batch_size=4)
    own = TableSettings(threads=3, batch_size=4, probes=7)
    plan_for_latency(*subject, {"latency_ms": "60%"}, table, own, round_to=1)
    assert fake.settings is own
    for other in ({"threads": 1, "batch_size": 4}, {"threads": 3}, {"threads": 3, "batch_size": 4, "provider": "cuda"}):
        with pytest.raises(PlanError, match=r"settings: .* the latency table was measured with"):
            plan_for_latency(*subject, {"latency_ms": "60%"}, table, TableSettings(**other))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["50%", 6.0])
def test_milliseconds_are_those_of_now(monkeypatch: pytest.MonkeyPatch, subject: Subject, target: str | float) -> None:
    _, coupling, _ = subject
    fake, table = Fake(lambda alive: true_ms(coupling, alive)), filled(coupling)
    fake.now = 2.0  # a table of better days; ratios are as they were
    monkeypatch.setattr(meet, "Stopwatch", fake)
    found = plan_for_latency(*subject, {"latency_ms": target}, table, round_to=1, floor=0.0)
    dense = true_ms(coupling, coupling.alive({}))
    assert found.dense_ms == pytest.approx(2 * dense)
    assert found.limit_ms == pytest.approx(dense if target == "50%" else target)
    assert found.measured_ms == pytest.approx(2 * true_ms(coupling, coupling.alive(found.plan.keep)))
    assert found.met
    assert 0.97 <= found.measured_ms / found.limit_ms <= 1.01


@pytest.mark.parametrize("about", [{"cpu": "abacus"}, {"onnxruntime": "0.1"}])
def test_a_table_of_another_machine(subject: Subject, about: dict[str, str]) -> None:
    with pytest.raises(PlanError, match=r"measured with .* (abacus|0\.1), this is"):
        plan_for_latency(*subject, {"latency_ms": "50%"}, filled(subject[1], **about))
