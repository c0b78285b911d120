"""The plan of a job whose target is a latency: a table is measured, then plans until one meets the target."""

from __future__ import annotations

from typing import Any

from curlfx.cost import PredictionError
from curlfx.coupling import Coupling
from curlfx.deploy.latency_table import LatencyTable
from curlfx.deploy.measure import TableSettings, measure_latency
from curlfx.deploy.meet import MeasuredPlan, plan_for_latency
from curlfx.graph.traced import TracedModel
from curlfx.planning import SlimPlan
from curlfx.recovery import processes
from curlfx.run.job import Job
from curlfx.run.subject import plan_options


def measured_table(job: Job, traced: TracedModel, coupling: Coupling) -> tuple[LatencyTable, TableSettings]:
    """What widths of the dense network cost in milliseconds, kept so that a killed run goes on where it was."""
    config = job.config
    settings = TableSettings(
        provider=config.bench.provider,
        threads=config.bench.threads,
        batch_size=config.bench.batch_size,
        probes=config.latency_probes,
        round_to=config.round_to,
        seed=config.seed,
    )
    job.say(f"measuring {settings.probes} narrow networks on onnxruntime")
    folder = job.checkpoint("latency")
    table = processes().on_leader(
        lambda: measure_latency(traced, coupling, settings, cache=folder, progress=job.progress)
    )
    error = table.prediction_error(traced, coupling)
    job.say(
        f"latency table: dense {table.dense_ms:.3g} ms; networks left out of the fit are predicted with an error of "
        f"{error.median:.1%} (median), {error.worst:.1%} (worst)"
    )
    return table, settings


def plan_measured(job: Job) -> tuple[SlimPlan, dict[str, Any]]:
    """The plan, and what was measured on the way, as the result of the stage has it.

    Raises: BudgetError when no plan meets the target by the table, or none did when it was measured.
    """
    config, traced, coupling = job.config, job.traced, job.coupling
    table, settings = measured_table(job, traced, coupling)
    error = table.prediction_error(traced, coupling)
    found = plan_for_latency(
        traced,
        coupling,
        job.scores,
        config.target.as_mapping(),
        table,
        settings,
        progress=job.progress,
        **plan_options(config),
    )
    return found.plan, {"latency": tell(job, found, error)}


def tell(job: Job, found: MeasuredPlan, error: PredictionError) -> dict[str, Any]:
    """What was measured, for people and for the result of the stage. Raises: BudgetError when no plan is met."""
    least = "search.least" if job.config.search.enabled else "the floor"
    for number, attempt in enumerate(found.attempts, 1):
        job.say(f"plan {number}: predicted {attempt.predicted_ms:.3g} ms, measured {attempt.measured_ms:.3g} ms")
    found.require(
        f"raise the target or lower {least} in a new run, or go on when the machine is idle: "
        f"curlfx run resume={job.directory.path}"
    )
    job.say(f"latency: {found.measured_ms:.3g} ms of {found.limit_ms:.3g} ms")
    return {
        "limit_ms": found.limit_ms,
        "dense_ms": found.dense_ms,
        "measured_ms": found.measured_ms,
        "met": found.met,
        "attempts": [[attempt.predicted_ms, attempt.measured_ms] for attempt in found.attempts],
        "prediction_error": {"median": error.median, "worst": error.worst, "networks": error.networks},
    }
