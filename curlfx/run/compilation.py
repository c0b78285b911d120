"""The stages that make the network narrower, but for the choice of channels: trace, couple, slim."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from curlfx.passes.absorb_bias import absorption
from curlfx.report.layers import frozen_rows, group_rows, layer_rows, to_csv
from curlfx.run.directory import write_text
from curlfx.run.job import Job
from curlfx.run.verify import VERIFIED_IMAGES, VerifyReport, gated_vs_slim

Result = dict[str, Any]


def trace(job: Job) -> Result:
    """The dense network as a graph."""
    for note in job.traced.notes:
        job.say(f"note: {note}")
    return {"notes": list(job.traced.notes), "nodes": len(job.traced.graph.nodes)}


def couple(job: Job) -> Result:
    """Its coupling groups."""
    job.say(f"{len(job.coupling.groups)} coupling groups with {job.coupling.total} channels")
    return {"groups": len(job.coupling.groups), "channels": job.coupling.total}


def slim(job: Job) -> Result:
    """Delete the channels; the result must equal the intact network with these channels multiplied by zero.

    Raises: VerificationError.
    """
    images = job.test_images(VERIFIED_IMAGES)
    check = gated_vs_slim(job.traced, job.coupling, job.plan.keep, images)
    job.say(f"{check.name}: {check.error:.1e}")
    VerifyReport((check,)).require()
    absorbed = _absorbed(job)
    rows = layer_rows(job.traced, job.slim, job.coupling, job.cost, job.alive)
    write_text(job.file("layers.csv"), to_csv(rows))
    return {
        "check": asdict(check),
        "groups": group_rows(job.coupling, job.plan.keep),
        "frozen": frozen_rows(job.coupling),
        "statistics_change": [group.id for group in job.coupling.groups if group.statistics_change],
        "absorbed": absorbed,
    }


def _absorbed(job: Job) -> Result | None:
    """What biases take over from channels that go, and what is lost; None where nothing is asked for."""
    if job.config.absorb_bias == "none":
        return None
    found = absorption(job.traced, job.coupling, job.plan.keep, job.config.absorb_bias)
    job.say(f"absorbed what removed channels would emit in {len(found.shifts)} layers")
    refused = [str(refusal) for refusal in found.refused]
    for refusal in refused:
        job.log(f"note: {refusal}")
    if refused:
        job.say(
            f"note: {len(refused)} layers lose what channels before them emit, see log.txt; the first: {refused[0]}"
        )
    return {"layers": len(found.shifts), "refused": refused}
