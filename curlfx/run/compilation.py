"""The stages that make the network narrower: trace, couple, score, plan, slim."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from curlfx.files import discard, write_bytes
from curlfx.importance import score as score_channels
from curlfx.passes.absorb_bias import absorption
from curlfx.report.layers import frozen_rows, group_rows, layer_rows, to_csv
from curlfx.run.directory import write_text
from curlfx.run.job import Job
from curlfx.run.subject import make_plan, proxy_batches
from curlfx.run.verify import VerifyReport, gated_vs_slim

Result = dict[str, Any]
VERIFIED_IMAGES = 4


def trace(job: Job) -> Result:
    """The dense network as a graph."""
    for note in job.traced.notes:
        job.say(f"note: {note}")
    return {"notes": list(job.traced.notes), "nodes": len(job.traced.graph.nodes)}


def couple(job: Job) -> Result:
    """Its coupling groups."""
    job.say(f"{len(job.coupling.groups)} coupling groups with {job.coupling.total} channels")
    return {"groups": len(job.coupling.groups), "channels": job.coupling.total}


def score(job: Job) -> Result:
    """A score for every coupled channel, from training images; what a killed run had found is used."""
    config, device, unfinished = job.config, job.subject.device, job.checkpoint("scores.unfinished.safetensors")
    images = proxy_batches(job.subject.data, config.proxy_images, config.seed)
    traced = job.traced if device.type == "cpu" else copy.deepcopy(job.traced).to(device)
    found = score_channels(
        traced,
        job.coupling,
        config.importance,
        data=images,
        seed=config.seed,
        progress=job.progress,
        divergence=config.divergence,
        store=unfinished,
    )
    write_bytes(job.checkpoint("scores.json"), found.to_json().encode())
    discard(unfinished)
    if "exact_channels" in found.details:
        exact, alike = found.details["exact_channels"], found.details["spearman_permille"] / 1000
        job.say(f"scores: {exact} of {job.coupling.total} channels exact, the rest fast (rank correlation {alike})")
    return {"criterion": found.criterion, "images": sum(map(len, images)), "details": dict(found.details)}


def plan(job: Job) -> Result:
    """Which channels stay, so that the target is met."""
    found = make_plan(job.config, job.traced, job.coupling, job.scores, job.cost)
    found = found.noting(model=job.config.model, arguments={"num_classes": job.subject.data.num_classes})
    write_text(job.file("plan.json"), found.to_json())
    before, after = found.before, found.after
    job.say(f"plan: {after.macs / before.macs:.1%} of the MACs, {after.params / before.params:.1%} of the parameters")
    return {"dense": before.as_dict(), "slim": after.as_dict()}


def slim(job: Job) -> Result:
    """Delete the channels; the result must equal the intact network with these channels multiplied by zero.

    Raises: VerificationError.
    """
    images = job.test_images(VERIFIED_IMAGES)
    check = gated_vs_slim(job.traced, job.coupling, job.plan.keep, images)
    job.say(f"{check.name}: {check.error:.1e}")
    VerifyReport((check,)).require()
    if job.config.absorb_bias != "none":
        found = absorption(job.traced, job.coupling, job.plan.keep, job.config.absorb_bias)
        job.say(f"absorbed what removed channels would emit in {len(found.shifts)} layers")
        for refusal in found.refused:
            job.say(f"note: {refusal}")
    rows = layer_rows(job.traced, job.slim, job.coupling, job.cost, job.alive)
    write_text(job.file("layers.csv"), to_csv(rows))
    return {
        "check": asdict(check),
        "groups": group_rows(job.coupling, job.plan.keep),
        "frozen": frozen_rows(job.coupling),
        "statistics_change": [group.id for group in job.coupling.groups if group.statistics_change],
    }
