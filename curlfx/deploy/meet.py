"""A plan whose latency is measured: plan by the table, measure, correct the table, and plan again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from curlfx.cost import CostModel
from curlfx.coupling import Coupling
from curlfx.deploy.latency_table import LatencyTable
from curlfx.deploy.measure import Stopwatch, TableSettings
from curlfx.errors import BudgetError, PlanError, TargetError
from curlfx.graph import TracedModel
from curlfx.importance.scores import Scores
from curlfx.planning import SlimPlan
from curlfx.planning import plan as make_plan
from curlfx.planning.target import Amount, parse_targets
from curlfx.progress import Progress, StepEvent, StepTimer

TOLERANCE = 0.03
OVER = 0.01  # how far above the target a measured latency may be to end the search
ROUNDS = 6
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


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan that was measured.

    Attributes:
        plan: The one of the attempts that comes nearest to the target from below, or else nearest.
        limit_ms: The target in milliseconds.
        dense_ms: Latency of the dense network.
        measured_ms: Latency of the slim network.
        met: Whether that is within `TOLERANCE` of the target, or below it.
        attempts: All of them, in order.
    """

    plan: SlimPlan
    limit_ms: float
    dense_ms: float
    measured_ms: float
    met: bool
    attempts: tuple[Attempt, ...]


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
    """Plan, slim, export, measure; take the measurement into the table; until measured latency meets the target.

    A latency that is measured within 3 % below the target, or 1 % above it, ends the search; so does a plan that comes
    again, and the sixth attempt.

    Args:
        traced: The dense network.
        coupling: Its channels.
        scores: What each channel is worth.
        target: ``latency_ms``, alone or with others, as for `curlfx.plan`.
        table: Of `curlfx.measure_latency`; gets a sample for every attempt.
        settings: Those that the table was measured with; None takes them from it.
        options: Of `curlfx.plan`; ``allocation`` is ``"knapsack"`` unless given, and ``"global"`` with ``per``.

    Raises: as `curlfx.plan`; TargetError when ``latency_ms`` is no target; PlanError when the table was measured with
        other settings.
    """
    if "latency_ms" not in target:
        raise TargetError(f"target = {dict(target)!r}: want latency_ms among them, like {{'latency_ms': '50%'}}")
    weighed = options.get("per", "auto") in ("auto", "channel")  # else scores are divided by what a knapsack weighs
    options = {"allocation": "knapsack" if weighed else "global", **options}
    settings, costs = _settings(table, settings), table.costs(traced, coupling)
    limit_ms = _limit(target, costs, table.dense_ms)
    attempts: list[Attempt] = []
    timer, factor = StepTimer(ROUNDS), 1.0
    with Stopwatch(traced, coupling, settings) as stopwatch:
        while len(attempts) < ROUNDS:
            bounds = {**target, "latency_ms": min(limit_ms / factor, costs.dense.latency_ms or limit_ms)}
            try:
                found = make_plan(traced, coupling, scores, bounds, costs=costs, **options)
            except BudgetError:
                if not attempts:
                    raise
                break  # the corrected table says that it cannot be reached: what was measured is what there is
            if any(found.keep == attempt.plan.keep for attempt in attempts):
                break
            sample = stopwatch.sample(found.keep, table.dense_ms)
            plan = found.model_copy(update={"target": dict(target)})
            attempts.append(Attempt(plan, found.after.latency_ms or 0.0, sample.milliseconds))
            if progress is not None:
                step = len(attempts)
                progress.on_step(StepEvent("plan", 0, step, ROUNDS, seconds_left=timer.seconds_left(step)))
            if 1 - TOLERANCE <= sample.milliseconds / limit_ms <= 1 + OVER:
                break
            table.samples.append(sample)
            costs = table.costs(traced, coupling)
            factor = sample.milliseconds / (costs.evaluate(sample.alive).latency_ms or sample.milliseconds)
    best = min(attempts, key=lambda attempt: _distance(attempt.measured_ms / limit_ms))
    return MeasuredPlan(
        plan=best.plan,
        limit_ms=limit_ms,
        dense_ms=table.dense_ms,
        measured_ms=best.measured_ms,
        met=best.measured_ms <= (1 + TOLERANCE) * limit_ms,
        attempts=tuple(attempts),
    )


def _settings(table: LatencyTable, given: TableSettings | None) -> TableSettings:
    """What plans are measured with: the same as the table. Raises: PlanError."""
    known = {name: table.about[name] for name in PLACE if name in table.about}
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


def _limit(target: Mapping[str, Amount], costs: CostModel, dense_ms: float) -> float:
    """The latency target in milliseconds, a share being one of the measured dense latency. Raises: TargetError."""
    dense = replace(costs.dense, latency_ms=max(dense_ms, costs.dense.latency_ms or 0.0))
    (latency,) = parse_targets({"latency_ms": target["latency_ms"]}, dense)
    share = str(target["latency_ms"]).strip().endswith("%")
    return float(latency.limit / latency.dense) * dense_ms if share else float(latency.limit)
