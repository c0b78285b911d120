"""The stages that train and judge: the dense network, the slim one before, within and after its recovery."""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch import nn

from curlfx.recovery import FitResult, Loader, Recipe, evaluate, fit, fit_expanded
from curlfx.recovery import recalibrate as measure
from curlfx.recovery import refine as refine_labels
from curlfx.recovery.batches import batches
from curlfx.recovery.recover import enlarging_loader, training_loader
from curlfx.run import gradual
from curlfx.run.job import EVALUATION_BATCH, SLIM, Job, save_tensors

Result = dict[str, Any]


def train(job: Job) -> Result:
    """Train the dense network on the data, unless it came with weights."""
    config = job.config.train
    if not job.config.trains_first:
        if job.config.weights is None:
            job.say("no weights and train.epochs=0: the dense network keeps its random weights")
        return {"epochs": 0}
    if job.config.gradual.interval != 0:
        return _train_gradually(job)
    seed, device = job.config.seed, str(job.subject.device)
    found = fit(
        job.subject.model,
        job.data.loader("train", config.batch_size, seed=seed, augment=True, shuffle=True),
        config.settings(seed=seed, device=device),
        validation=_validation(job),
        stage="train",
        progress=job.progress,
        checkpoint=job.checkpoint("train.pt"),
        resume=True,
    )
    _tell(job, found, "train")
    job.say(f"trained the dense network: {len(found.history)} epochs in {found.seconds:.1f} s")
    save_tensors(job.subject.model, job.checkpoint("dense.safetensors"))
    return {"epochs": len(found.history), "accuracy": found.accuracy}


def _train_gradually(job: Job) -> Result:
    found, pruning = gradual.train(job, _validation(job))
    _tell(job, found, "train")
    share = pruning["training_macs"] / max(pruning["training_macs_dense"], 1)
    job.say(
        f"trained and pruned: {len(found.history)} epochs in {found.seconds:.1f} s, with {share:.1%} of the MACs of a "
        "dense training; the dense network has zero weights in place of what is gone"
    )
    return {"epochs": len(found.history), "accuracy": found.accuracy, "gradual": pruning}


def judge_dense(job: Job) -> Result:
    """Accuracy of the dense network on the test images; a note where weights that were given only guess."""
    accuracy = _accuracy(job, job.dense, "dense", "of the dense network")
    if job.config.weights is not None and _guesses(accuracy, job.data.num_classes, job.data.size("test")):
        job.say(
            f"note: no better than guessing among {job.data.num_classes} classes; are the weights trained, on these "
            "classes in this order (of a folder: by name), and on images normalised as these are?"
        )
    return {"accuracy": accuracy}


def _guesses(accuracy: float, classes: int, images: int) -> bool:
    """Whether ``accuracy`` is at most that of guessing plus two standard deviations of it over ``images``."""
    chance = 1 / classes
    return classes > 1 and accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / images)


def judge_unrecovered(job: Job) -> Result:
    """Accuracy straight after slimming; also without absorbed biases, where they are absorbed."""
    without = None
    if job.config.absorb_bias != "none":
        bare = job.slimmed("none").module
        without = _accuracy(job, bare, "unrecovered", "straight after slimming, no biases absorbed")
    accuracy = _accuracy(job, job.slim.module, "unrecovered", "straight after slimming")
    return {"accuracy": accuracy, "without_absorbing": without}


def recalibrate(job: Job) -> Result:
    """Measure BatchNorm's statistics of the slim network afresh, if that is asked for, and judge it again."""
    wanted, network = job.config.recovery.recalibrate_batches, job.slim.module
    if wanted == 0:
        return {"batches": 0, "norms": 0, "accuracy": None}
    norms = measure_norms(job, network)
    accuracy = _accuracy(job, network, "recalibrated", f"after measuring {norms} BatchNorms on {wanted} batches")
    save_tensors(network, job.file(SLIM), plan="plan.json")
    return {"batches": wanted, "norms": norms, "accuracy": accuracy}


def measure_norms(job: Job, network: nn.Module) -> int:
    """Measure BatchNorm's statistics of a slim network on as many batches as its recovery asks for; how many were."""
    wanted = job.config.recovery.recalibrate_batches
    if wanted == 0:
        return 0
    loader = job.data.loader("train", job.config.recovery.batch_size, seed=job.config.seed, shuffle=True)
    epochs = -(-wanted // len(loader))
    drawn = itertools.chain.from_iterable(batches(loader, epoch) for epoch in range(epochs))
    return measure(network, itertools.islice(drawn, wanted), device=str(job.subject.device))


def overparam(job: Job) -> Result:
    """Train the slim network enlarged, after the dense one's features, and contract it, if that is asked for."""
    recipe, network = _recipe(job), job.slim.module
    settings = recipe.overparam
    if settings.train.epochs == 0:
        return {"epochs": 0, "accuracy": None}
    found = fit_expanded(
        job.slim, enlarging_loader(job.data, recipe), settings, teacher=job.traced, validation=_validation(job),
        progress=job.progress, checkpoint=job.checkpoint("overparam.pt"), resume=True,
    )  # fmt: skip
    _tell(job, found, "overparam")
    job.say(f"trained the enlarged network, contracted it: {len(found.history)} epochs in {found.seconds:.1f} s")
    accuracy = None
    if recipe.train.epochs or recipe.refine.epochs:  # else it is what the last stage will find
        accuracy = _accuracy(job, network, "overparam", "of the contracted network")
    save_tensors(network, job.file(SLIM), plan="plan.json")
    return {"epochs": len(found.history), "accuracy": accuracy}


def recover(job: Job) -> Result:
    """Train the slim network with the dense one as its teacher."""
    recipe, network = _recipe(job), job.slim.module
    found = FitResult((), 0.0)
    if recipe.train.epochs:
        found = fit(
            network, training_loader(job.data, recipe), recipe.train, teacher=job.dense, validation=_validation(job),
            stage="recover", progress=job.progress, checkpoint=job.checkpoint("recover.pt"), resume=True,
        )  # fmt: skip
        _tell(job, found, "recover")
        job.say(f"recovered the slim network: {len(found.history)} epochs in {found.seconds:.1f} s")
    accuracy = None
    if recipe.train.epochs and recipe.refine.epochs:  # else it is what the last stage will find
        accuracy = _accuracy(job, network, "recovered", "before the labels are refined")
    save_tensors(network, job.file(SLIM), plan="plan.json")
    return {"epochs": len(found.history), "accuracy": accuracy}


def refine(job: Job) -> Result:
    """Train soft labels along with the slim network, if that is asked for."""
    recipe, network = _recipe(job), job.slim.module
    if recipe.refine.epochs == 0:
        return {"epochs": 0, "labels": None}
    found, labels = refine_labels(
        network, job.data, recipe, teacher=job.dense, validation=_validation(job), progress=job.progress,
        checkpoint=job.checkpoint("refine.pt"), resume=True,
    )  # fmt: skip
    _tell(job, found, "refine")
    count, classes = labels.values.shape
    job.say(f"refined {count} labels of {classes} classes: {len(found.history)} epochs in {found.seconds:.1f} s")
    save_tensors(network, job.file(SLIM), plan="plan.json")
    file = labels.file
    return {"epochs": len(found.history), "labels": None if file is None else str(file.relative_to(job.directory.path))}


def judge_slim(job: Job) -> Result:
    """Accuracy of the slim network on the test images."""
    accuracy = _accuracy(job, job.slim.module, "slim", "of the slim network")
    return {"accuracy": accuracy, "images": job.subject.data.size("test")}


def _recipe(job: Job) -> Recipe:
    return job.config.recovery.of(seed=job.config.seed, device=str(job.subject.device))


def _tell(job: Job, found: FitResult, stage: str) -> None:
    """Log the epochs of a training that ran now."""
    for record in found.history[found.resumed_after :]:
        judged = "" if record.validation is None else f"  accuracy {record.validation:.4f}"
        job.log(f"{stage} epoch {record.epoch}  loss {record.loss:.4f}{judged}  lr {record.lr:.2g}")


def _validation(job: Job) -> Loader:
    """Held-out training images where the data has them; else test images, only shown: nothing is chosen by them."""
    data = job.data
    return data.loader("val" if "val" in data.splits else "test", EVALUATION_BATCH)


def _accuracy(job: Job, network: nn.Module, stage: str, which: str) -> float:
    loader = job.data.loader("test", EVALUATION_BATCH)
    accuracy = evaluate(network, loader, device=str(job.subject.device), stage=stage, progress=job.progress)
    job.say(f"accuracy {which}: {accuracy:.4f}")
    return accuracy
