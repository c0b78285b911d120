"""Scores and the plan: once for the dense network, or again for what every step of an iterative pruning left of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from curlfx.coupling import Coupling
from curlfx.files import discard, write_bytes
from curlfx.graph.traced import TracedModel
from curlfx.importance import Scores
from curlfx.importance import score as score_channels
from curlfx.planning import SlimPlan
from curlfx.run import gradual
from curlfx.run.directory import write_text
from curlfx.run.job import Job
from curlfx.run.latency import plan_measured
from curlfx.run.search import plan_searched
from curlfx.run.subject import make_plan, scoring_batches

Result = dict[str, Any]


def score(job: Job) -> Result:
    """A score for every coupled channel, from training images; what a killed run had found is used."""
    if job.config.gradual.interval != 0:
        return gradual.score(job)
    found = _scored(job, job.traced, job.coupling, "scores")
    discard(_unfinished(job, "scores"))
    return {"criterion": found.criterion, "details": dict(found.details)}


def plan(job: Job) -> Result:
    """Which channels stay, so that the target is met."""
    found, measured = _chosen(job)
    found = found.noting(model=job.config.model, arguments={"num_classes": job.subject.data.num_classes})
    write_text(job.file("plan.json"), found.to_json())
    before, after = found.before, found.after
    job.say(f"plan: {after.macs / before.macs:.1%} of the MACs, {after.params / before.params:.1%} of the parameters")
    return {"dense": before.as_dict(), "slim": after.as_dict(), **measured}


def _chosen(job: Job) -> tuple[SlimPlan, Result]:
    """The plan, and what was found on the way to it."""
    if job.config.gradual.interval != 0:
        return gradual.plan(job), {}
    if job.config.search.enabled:
        return plan_searched(job)
    return plan_measured(job) if job.config.target.latency_ms is not None else (_planned(job), {})


def _planned(job: Job) -> SlimPlan:
    """A plan for a target that needs no measurement."""
    names: list[str] = []

    def scored(traced: TracedModel, coupling: Coupling) -> Scores:
        if traced is job.traced:
            return job.scores
        names.append(f"scores-{len(names) + 2}")
        job.say(f"{coupling.total} channels are left, which are scored again")
        return _scored(job, traced, coupling, names[-1])

    found = make_plan(job.config, job.traced, job.coupling, scored, job.cost)
    for name in names:
        discard(_unfinished(job, name))
    return found


def _scored(job: Job, traced: TracedModel, coupling: Coupling, name: str) -> Scores:
    """Scores of a network, also left in a checkpoint of that name; what was found for the same question is used."""
    config, device = job.config, job.subject.device
    found = score_channels(
        traced if device.type == "cpu" else copy.deepcopy(traced).to(device),
        coupling,
        config.importance,
        data=scoring_batches(job.subject.data, config.proxy_images, config.seed, config.importance),
        seed=config.seed,
        progress=job.progress,
        divergence=config.divergence,
        store=_unfinished(job, name),
    )
    write_bytes(job.checkpoint(f"{name}.json"), found.to_json().encode())
    if "spearman_permille" in found.details:
        exact, alike = found.details["exact_channels"], found.details["spearman_permille"] / 1000
        job.say(f"scores: {exact} of {coupling.total} channels exact, the rest fast (rank correlation {alike})")
    return found


def _unfinished(job: Job, name: str) -> Path:
    """Where scoring keeps what it has so far, with the question that it answers."""
    return job.checkpoint(f"{name}.unfinished.safetensors")
