"""Scores and the plan: once for the dense network, or again for what every step of an iterative pruning left of it."""

from __future__ import annotations

import copy
from typing import Any

from curlfx.coupling import Coupling
from curlfx.files import discard, write_bytes
from curlfx.graph.traced import TracedModel
from curlfx.importance import Scores
from curlfx.importance import score as score_channels
from curlfx.planning import SlimPlan, prune_iteratively
from curlfx.run.directory import write_text
from curlfx.run.job import SCORES, Job, read_scores
from curlfx.run.subject import make_plan, plan_options, proxy_batches

Result = dict[str, Any]


def score(job: Job) -> Result:
    """A score for every coupled channel, from training images; what a killed run had found is used."""
    found = _scored(job, job.traced, job.coupling, SCORES)
    return {"criterion": found.criterion, "details": dict(found.details)}


def plan(job: Job) -> Result:
    """Which channels stay, so that the target is met."""
    steps = job.config.iterative_steps
    if steps == 1:
        found = make_plan(job.config, job.traced, job.coupling, job.scores, job.cost)
    else:
        found = _in_steps(job, steps)
    found = found.noting(model=job.config.model, arguments={"num_classes": job.subject.data.num_classes})
    write_text(job.file("plan.json"), found.to_json())
    before, after = found.before, found.after
    job.say(f"plan: {after.macs / before.macs:.1%} of the MACs, {after.params / before.params:.1%} of the parameters")
    return {"dense": before.as_dict(), "slim": after.as_dict()}


def _in_steps(job: Job, steps: int) -> SlimPlan:
    """The plan of an iterative pruning; scores of steps that a killed run had finished are read back."""
    step = 0

    def scored(traced: TracedModel, coupling: Coupling) -> Scores:
        nonlocal step
        step += 1
        if step == 1:
            return job.scores
        job.say(f"step {step} of {steps}: {coupling.total} channels are left")
        name = f"scores-{step}.json"
        path = job.checkpoint(name)
        return read_scores(path, coupling) if path.exists() else _scored(job, traced, coupling, name)

    config = job.config
    target = config.target.as_mapping()
    return prune_iteratively(job.traced, job.coupling, scored, target, steps, **plan_options(config), costs=job.cost)


def _scored(job: Job, traced: TracedModel, coupling: Coupling, name: str) -> Scores:
    """Scores of a network, also left in the checkpoint ``name``."""
    config, device = job.config, job.subject.device
    unfinished = job.checkpoint(name).with_suffix(".unfinished.safetensors")
    found = score_channels(
        traced if device.type == "cpu" else copy.deepcopy(traced).to(device),
        coupling,
        config.importance,
        data=proxy_batches(job.subject.data, config.proxy_images, config.seed),
        seed=config.seed,
        progress=job.progress,
        divergence=config.divergence,
        store=unfinished,
    )
    write_bytes(job.checkpoint(name), found.to_json().encode())
    discard(unfinished)
    if "spearman_permille" in found.details:
        exact, alike = found.details["exact_channels"], found.details["spearman_permille"] / 1000
        job.say(f"scores: {exact} of {coupling.total} channels exact, the rest fast (rank correlation {alike})")
    return found
