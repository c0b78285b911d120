"""The training of a job whose channels go meanwhile: it takes the place of training, scoring and planning."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import OutputError
from curlfx.files import read_text
from curlfx.gradual import GradualPruner, PruneStep, Pruning
from curlfx.graph.traced import TracedModel
from curlfx.planning import SlimPlan
from curlfx.planning.apply import slim
from curlfx.recovery import FitResult, Loader, fit
from curlfx.run.directory import STATE, write_text
from curlfx.run.job import Job, reading, save_tensors
from curlfx.run.latency import measured_table
from curlfx.run.pruner import make_pruner
from curlfx.run.subject import scoring_batches
from curlfx.run.verify import MASKED, VERIFIED_IMAGES, Check, VerifyReport, masked_vs_slim

Result = dict[str, Any]
PLAN = "gradual-plan.json"


def train(job: Job, validation: Loader) -> tuple[FitResult, Result]:
    """Train and prune; the dense network then has zero weights where channels are gone, and the plan is made.

    Raises: VerificationError when the trained network and the slim one differ.
    """
    config, settings = job.config, job.config.train
    traced = job.subject.trace()
    proxy = scoring_batches(job.data, config.proxy_images, config.seed, config.importance)
    coupling = couple(traced, frozen=config.ignored_layers)
    pruner = make_pruner(config, traced, config.importance, proxy, coupling, _measured(job, traced, coupling))

    def told(step: PruneStep) -> None:
        job.say(f"epoch {step.epoch}: {step.channels} channels go, {step.left} are left, {_left(pruner)}")

    found = fit(
        traced.module,
        job.data.loader("train", settings.batch_size, seed=config.seed, augment=True, shuffle=True),
        settings.settings(seed=config.seed, device=str(job.subject.device)),
        validation=validation,
        stage="train",
        progress=job.progress,
        checkpoint=job.checkpoint("train.pt"),
        resume=True,
        supplement=Pruning(pruner, told),
    )
    check = _kept(job, pruner)
    if not pruner.reached:
        job.say(f"note: {len(pruner.history)} steps did not reach the target; {_left(pruner)} are left")
    return found, _history(job, pruner) | _seconds(found, pruner) | {"check": asdict(check)}


def _measured(job: Job, traced: TracedModel, coupling: Coupling) -> CostModel | None:
    """What networks cost, milliseconds included; None where no latency is the target."""
    if job.config.target.latency_ms is None:
        return None
    table, _ = measured_table(job, traced, coupling)
    return table.costs(traced, coupling)


def _left(pruner: GradualPruner) -> str:
    """What is left of the network, in words."""
    dense, slim = pruner.dense_cost, pruner.cost
    found = f"{slim.macs / dense.macs:.1%} of the MACs"
    if dense.latency_ms and slim.latency_ms is not None:
        found += f" and, by the latency table, {slim.latency_ms / dense.latency_ms:.1%} of the latency"
    return found


def _kept(job: Job, pruner: GradualPruner) -> Check:
    """Leave the trained weights in the dense network and the plan in a checkpoint."""
    traced, narrow, plan = pruner.traced.to("cpu"), pruner.slim().to("cpu"), pruner.plan()
    job.subject.model.load_state_dict({name: tensor.cpu() for name, tensor in pruner.dense_state_dict().items()})
    save_tensors(job.subject.model, job.checkpoint("dense.safetensors"))
    write_text(job.checkpoint(PLAN), plan.to_json())
    wide = job.subject.trace()
    check = masked_vs_slim(
        wide, slim(wide, plan), traced if pruner.physical else narrow, job.test_images(VERIFIED_IMAGES)
    )
    job.say(f"{MASKED}: {check.error:.1e}")
    VerifyReport((check,)).require()
    return check


def _history(job: Job, pruner: GradualPruner) -> Result:
    """What ``summary.json`` says of the pruning."""
    spent, dense = pruner.training_macs(job.subject.data.size("train"))
    return {
        "interval": pruner.schedule.interval,
        "last": pruner.schedule.last,
        "amount": pruner.schedule.amount,
        "floor": pruner.schedule.floor,
        "physical": pruner.physical,
        "reached": pruner.reached,
        "steps": [asdict(step) for step in pruner.history],
        "training_macs": spent,
        "training_macs_dense": dense,
    }


def _seconds(found: FitResult, pruner: GradualPruner) -> Result:
    """What the training took, and what a dense one would have by its epochs up to the first step, without that."""
    interval = pruner.schedule.interval
    stepped = sum(step.seconds for step in pruner.history if step.epoch <= interval)
    dense = sum(record.seconds for record in found.history[:interval]) - stepped
    estimate = len(found.history) * dense / interval
    return {"training_seconds": round(found.seconds, 3), "training_seconds_dense": round(estimate, 3)}


def score(job: Job) -> Result:
    """The channels were scored at every step of the training; what they were ranked by."""
    pruning = job.done("train").get("gradual")
    if pruning is None:
        raise OutputError(
            f"{job.file(STATE)}: done['train'].gradual: missing, though gradual.interval is set; restore the file, or "
            "start a new run"
        )
    return {"criterion": job.config.importance, "details": {"steps": len(pruning["steps"])}}


def plan(job: Job) -> SlimPlan:
    """The plan that the training left."""
    path = job.checkpoint(PLAN)
    with reading(path):
        found = SlimPlan.from_json(read_text(path))
        found.check(job.traced, job.coupling)
    return found
