"""The stages that train and judge: the dense network, its accuracy, recovery, and the accuracy after it."""

from __future__ import annotations

from typing import Any

from torch import nn

from curlfx.recovery import FitResult, Loader, evaluate, fit
from curlfx.run.config import TrainingConfig
from curlfx.run.job import EVALUATION_BATCH, Job, save_tensors

Result = dict[str, Any]


def train(job: Job) -> Result:
    """Train the dense network on the data, unless it came with weights."""
    if not job.config.trains_first:
        if job.config.weights is None:
            job.say("no weights and train.epochs=0: the dense network keeps its random weights")
        return {"epochs": 0}
    found = _fit(job, job.subject.model, job.config.train, "train", None)
    job.say(f"trained the dense network: {len(found.history)} epochs in {found.seconds:.1f} s")
    save_tensors(job.subject.model, job.checkpoint("dense.safetensors"))
    return {"epochs": len(found.history), "accuracy": found.accuracy}


def judge_dense(job: Job) -> Result:
    """Accuracy of the dense network on the test images."""
    return {"accuracy": _accuracy(job, job.dense, "dense", "of the dense network")}


def judge_unrecovered(job: Job) -> Result:
    """Accuracy straight after slimming."""
    return {"accuracy": _accuracy(job, job.slim.module, "unrecovered", "straight after slimming")}


def recover(job: Job) -> Result:
    """Train the slim network with the dense one as its teacher."""
    settings, network = job.config.recovery, job.slim.module
    found = FitResult((), 0.0)
    if settings.epochs:
        found = _fit(job, network, settings, "recover", job.dense if settings.distillation else None)
        job.say(f"recovered the slim network: {len(found.history)} epochs in {found.seconds:.1f} s")
    save_tensors(network, job.file("slim.safetensors"), plan="plan.json")
    return {"epochs": len(found.history), "accuracy": found.accuracy}


def judge_slim(job: Job) -> Result:
    """Accuracy of the slim network on the test images."""
    accuracy = _accuracy(job, job.slim.module, "slim", "of the slim network")
    return {"accuracy": accuracy, "images": job.subject.data.size("test")}


def _fit(job: Job, network: nn.Module, config: TrainingConfig, stage: str, teacher: nn.Module | None) -> FitResult:
    data, seed = job.subject.data.to(job.subject.device), job.config.seed
    checkpoint = job.checkpoint(f"{stage}.pt")
    found = fit(
        network,
        data.loader("train", config.batch_size, seed=seed, augment=True, shuffle=True),
        config.settings(seed=seed, device=str(job.subject.device)),
        teacher=teacher,
        validation=_validation(job),
        stage=stage,
        progress=job.progress,
        checkpoint=checkpoint,
        resume=True,
    )
    for record in found.history[found.resumed_after :]:
        judged = "" if record.validation is None else f"  accuracy {record.validation:.4f}"
        job.log(f"{stage} epoch {record.epoch}  loss {record.loss:.4f}{judged}  lr {record.lr:.2g}")
    return found


def _validation(job: Job) -> Loader:
    """Held-out training images where the data has them; else test images, only shown: nothing is chosen by them."""
    data = job.subject.data.to(job.subject.device)
    return data.loader("val" if "val" in data.splits else "test", EVALUATION_BATCH)


def _accuracy(job: Job, network: nn.Module, stage: str, which: str) -> float:
    loader = job.subject.data.to(job.subject.device).loader("test", EVALUATION_BATCH)
    accuracy = evaluate(network, loader, device=str(job.subject.device), stage=stage, progress=job.progress)
    job.say(f"accuracy {which}: {accuracy:.4f}")
    return accuracy
