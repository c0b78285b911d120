"""A plan whose latency is measured: plan by the table, measure, correct the table, and plan again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from curlfx.cost import CostModel
from curlfx.coupling import Coupling
from curlfx.deploy.environment import environment
from curlfx.deploy.latency_table import LatencyTable
from curlfx.deploy.measure import Keep, Stopwatch, TableSettings
from curlfx.errors import BudgetError, PlanError, TargetError
from curlfx.graph import TracedModel
from curlfx.importance.scores import Scores
from curlfx.planning import SlimPlan
from curlfx.planning import plan as make_plan
from curlfx.planning.budget import nothing_can_go
from curlfx.planning.choose import SOLVERS, check_worth, default_allocation
from curlfx.planning.target import Amount, parse_targets
from curlfx.progress import Progress, StepEvent, StepTimer

TOLERANCE = 0.03
OVER = 0.01  # how far above the target a measured latency may be to end the search
ROUNDS = 6
Propose = Callable[[Mapping[str, Amount], CostModel], SlimPlan]
PLACE = ("provider", "threads", "batch_size")  # what of its settings a latency depends on


@dataclass(frozen=True)
class Attempt:
    """One plan and what came of it.

    Attributes:
        plan: The plan.
        predicted_ms: Its latency by the table, milliseconds.
        measured_ms: As measured beside the dense network, milliseconds.
    """

    plan: SlimPlan
    predicted_ms: float
    measured_ms: float

    def scaled(self, factor: float) -> Attempt:
        """The same on a machine that takes ``factor`` times as long."""
        return Attempt(self.plan, factor * self.predicted_ms, factor * self.measured_ms)


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan that was measured.

    Attributes:
        plan: The one of the attempts that comes nearest to the target from below, or else nearest.
        limit_ms: The target in milliseconds.
        dense_ms: Latency of the dense network, just before the plans were measured.
        measured_ms: Latency of the slim network, by the same measure.
        met: Whether that is within `TOLERANCE` of the target, or below it.
        attempts: All of them, in order.
    """

    plan: SlimPlan
    limit_ms: float
    dense_ms: float
    measured_ms: float
    met: bool
    attempts: tuple[Attempt, ...]

    def require(self, advice: str) -> None:
        """Raises: BudgetError with ``advice`` when the target was not met."""
        if not self.met:
            found = f"the best of {len(self.attempts)} plans was measured at {self.measured_ms:.3g} ms"
            raise BudgetError(f"latency_ms: {found} of {self.limit_ms:.3g} ms; {advice}")


def plan_for_latency(
    traced: TracedModel,
    coupling: Coupling,
    scores: Scores,
    target: Mapping[str, Amount],
    table: LatencyTable,
    settings: TableSettings | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> MeasuredPlan:
    """Plan from scores, slim, export, measure; until measured latency meets the target, as `meet_latency` says.

    Args:
        scores: What each channel is worth.
        options: Of `curlfx.plan`.

    Raises: as `curlfx.plan` and `meet_latency`.
    """

    def propose(bounds: Mapping[str, Amount], costs: CostModel) -> SlimPlan:
        return make_plan(traced, coupling, scores, bounds, costs=costs, **options)

    return meet_latency(traced, coupling, target, table, propose, settings, progress=progress)


def meet_latency(
    traced: TracedModel,
    coupling: Coupling,
    target: Mapping[str, Amount],
    table: LatencyTable,
    propose: Propose,
    settings: TableSettings | None = None,
    *,
    least: float = 1 - TOLERANCE,
    progress: Progress | None = None,
) -> MeasuredPlan:
    """Measure what is proposed; take the measurement into the table; until measured latency meets the target.

    A latency that is measured between ``least`` of the target and 1 % above it ends this; so does a plan that comes
    again, and the sixth attempt.

    Args:
        traced: The dense network.
        coupling: Its channels.
        target: ``latency_ms``, alone or with others, as for `curlfx.plan`.
        table: Of `curlfx.measure_latency`; gets a sample for every attempt but the last. Times are scaled to what the
            dense network takes now.
        propose: Makes a plan within bounds, by a cost model with the table's latencies.
        settings: Those that the table was measured with; None takes them from it.
        least: Share of the target below which too much is gone, in (0, 1].

    Raises: what ``propose`` does for the first plan; TargetError when ``latency_ms`` is no target; PlanError when the
        table was measured with other settings.
    """
    if "latency_ms" not in target:
        raise TargetError(f"target = {dict(target)!r}: want latency_ms among them, like {{'latency_ms': '50%'}}")
    settings = _settings(table, settings)
    attempts: list[Attempt] = []
    timer = StepTimer(ROUNDS)
    with Stopwatch(traced, coupling, settings) as stopwatch:
        dense_now = stopwatch.dense_now()
        drift = dense_now / table.dense_ms  # of the machine since the table was measured
        limit_ms = _limit(target, table.costs(traced, coupling), dense_now) / drift
        for attempt in _attempts(stopwatch, propose, target, table, limit_ms, least):
            attempts.append(attempt)
            if progress is not None:
                step = len(attempts)
                progress.on_step(StepEvent("plan", 0, step, ROUNDS, seconds_left=timer.seconds_left(step)))
    best = min(attempts, key=lambda attempt: _distance(attempt.measured_ms / limit_ms))
    return MeasuredPlan(
        plan=best.plan,
        limit_ms=drift * limit_ms,
        dense_ms=dense_now,
        measured_ms=drift * best.measured_ms,
        met=best.measured_ms <= (1 + TOLERANCE) * limit_ms,
        attempts=tuple(attempt.scaled(drift) for attempt in attempts),
    )


def check_request(
    traced: TracedModel, coupling: Coupling, scores: Scores, target: Mapping[str, Amount], **options: Any
) -> None:
    """Refuse what `plan_for_latency` would refuse, as far as that shows without a measurement.

    Raises: as `plan_for_latency`.
    """
    per = options.get("per", "auto")
    allocation = options.get("allocation") or default_allocation(target, per)
    if allocation in SOLVERS:
        check_worth("channel" if per == "auto" else per, scores)
    if not coupling.groups:
        raise nothing_can_go("latency_ms", coupling)
    costs = CostModel(traced, coupling)
    boundless = replace(costs.dense, latency_ms=sys.float_info.max)
    parse_targets({"latency_ms": target["latency_ms"]}, boundless)
    others = {name: amount for name, amount in target.items() if name != "latency_ms"} or {"macs": "100%"}
    plainly = {"allocation": "global", "per": "channel" if per == "latency" else per}
    make_plan(traced, coupling, scores, others, costs=costs, **{**options, **plainly})


def _attempts(
    stopwatch: Stopwatch,
    propose: Propose,
    target: Mapping[str, Amount],
    table: LatencyTable,
    limit_ms: float,
    least: float,
) -> Iterator[Attempt]:
    """Plans and their measurements, in milliseconds of the table; the last one meets the limit, or there is no other.

    Raises: what ``propose`` does for the first plan.
    """
    traced, coupling = stopwatch.traced, stopwatch.coupling
    costs, tried = table.costs(traced, coupling), list[Keep]()
    factor = table.dense_ms / _predicted(costs)  # measured over predicted, for the newest plan
    while len(tried) < ROUNDS:
        bounds = {**target, "latency_ms": min(limit_ms / factor, _predicted(costs))}
        try:
            found = propose(bounds, costs)
        except BudgetError:
            if not tried:
                raise
            return  # the corrected table says that it cannot be reached: what was measured is what there is
        if found.keep in tried:
            return
        tried.append(found.keep)
        sample = stopwatch.sample(found.keep, table.dense_ms)
        plan = found.model_copy(update={"target": dict(target)})
        yield Attempt(plan, found.after.latency_ms or 0.0, sample.milliseconds)
        if least <= sample.milliseconds / limit_ms <= 1 + OVER:
            return
        table.samples.append(sample)
        costs = table.costs(traced, coupling)
        factor = sample.milliseconds / (costs.evaluate(sample.alive).latency_ms or sample.milliseconds)


def _settings(table: LatencyTable, given: TableSettings | None) -> TableSettings:
    """What plans are measured with: the same as the table, on the same machine. Raises: PlanError."""
    known = {name: table.about[name] for name in PLACE if name in table.about}
    here = environment()
    here = {"cpu": here["cpu"], "onnxruntime": here["versions"]["onnxruntime"]}
    for name, value in here.items():
        if table.about.get(name, value) != value:
            raise PlanError(
                f"latency table: measured with {name} {table.about[name]}, this is {value}; measure it again"
            )
    if given is None:
        return TableSettings(**known)
    for name, value in known.items():
        if getattr(given, name) != value:
            raise PlanError(
                f"settings: {name} = {getattr(given, name)!r}, the latency table was measured with {value!r}; "
                "give the settings of the table, or measure another"
            )
    return given


def _distance(ratio: float) -> tuple[bool, float]:
    """Order of attempts by measured latency over target: those that meet it first, the nearest first."""
    return ratio > 1 + OVER, abs(ratio - 1)


def _predicted(costs: CostModel) -> float:
    """Latency of the dense network by the table."""
    return costs.dense.latency_ms or 0.0


def _limit(target: Mapping[str, Amount], costs: CostModel, dense_ms: float) -> float:
    """The latency target in milliseconds, a share being one of the measured dense latency. Raises: TargetError."""
    dense = replace(costs.dense, latency_ms=dense_ms)
    (latency,) = parse_targets({"latency_ms": target["latency_ms"]}, dense)
    return float(latency.limit)
