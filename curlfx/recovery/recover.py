"""Recovery of a slim network under its dense one: a training, and a refinement of the labels after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from curlfx.errors import ConfigError
from curlfx.progress import Progress
from curlfx.recovery.batches import Loader
from curlfx.recovery.fit import FitResult, fit
from curlfx.recovery.recipes import Recipe, find_recipe
from curlfx.recovery.settings import TrainSettings
from curlfx.recovery.soft_labels import SoftLabels, teacher_logits

TEACHER_BATCH = 256


@runtime_checkable
class TrainingData(Protocol):
    """Images that can be had as they look in training and in evaluation, and in six versions each.

    `curlfx.load_data` gives such data; so does anything else with these two methods.
    """

    def loader(
        self,
        split: Literal["train"],
        batch_size: int,
        *,
        seed: int = 0,
        augment: bool | Literal["mild"] = False,
        shuffle: bool = False,
        indexed: bool = False,
    ) -> Loader:
        """Batches ``(images, labels)``; ``indexed`` adds positions, the same for the same image in every epoch."""

    def expanded(self, seed: int = 0) -> TrainingData:
        """The same with more versions of every training image, each the same whenever it is asked for."""


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery did; the network itself was changed in place.

    Attributes:
        trained: The training of the weights alone.
        refined: The one with soft labels; None without.
        labels: The soft labels as they ended; None without.
    """

    trained: FitResult
    refined: FitResult | None = None
    labels: SoftLabels | None = None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy at the end, in [0, 1]; None without a validation loader or an epoch."""
        last = self.refined or self.trained
        return last.accuracy

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(one.seconds for one in (self.trained, self.refined) if one is not None)


def recover(
    student: nn.Module,
    data: Loader | TrainingData,
    recipe: str | Recipe | TrainSettings = "distillation",
    *,
    teacher: nn.Module,
    validation: Loader | None = None,
    stage: str = "recover",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> RecoveryResult:
    """Train a slim network, in place, with its dense one as the teacher.

        curlfx.recover(slim.module, curlfx.load_data("imagefolder:birds"), "curl", teacher=model)

    Args:
        data: What `curlfx.load_data` gives; or, for a recipe without expansion and refinement, batches of images and
            labels.
        recipe: A name of `curlfx.recovery.RECIPES`, a recipe of one's own, or the settings of a single training.
        validation: Judged after every epoch; nothing is chosen by it.
        checkpoint: File written after every epoch; that of the refinement is called ``<stem>-refine`` and has the soft
            labels beside it.
        resume: Go on from these files if they exist, to the same bits.

    Raises: as `fit`; ConfigError when the recipe needs more than batches.
    """
    chosen = _recipe(recipe)
    trained = fit(
        student, _training_batches(data, chosen), chosen.train, teacher=teacher, validation=validation, stage=stage,
        progress=progress, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    if chosen.refine.epochs == 0 or not isinstance(data, TrainingData):
        return RecoveryResult(trained)
    beside = None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-refine")
    refined, labels = refine(
        student, data, chosen, teacher=teacher, validation=validation, stage=f"{stage}, refine", progress=progress,
        checkpoint=beside, resume=resume,
    )  # fmt: skip
    return RecoveryResult(trained, refined, labels)


def refine(
    student: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    teacher: nn.Module,
    validation: Loader | None = None,
    stage: str = "refine",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> tuple[FitResult, SoftLabels]:
    """The second training of ``recipe`` alone: soft labels start as the teacher's logits and move to the student's.

    Every step moves the labels of its batch by plain gradient descent along with the weights. Arguments and errors: as
    for `recover`.

    Source: CURL, arXiv:1911.08114, label refinement.
    """
    settings = recipe.refine
    images = data.expanded(settings.seed) if recipe.expand_refine else data
    labels = SoftLabels(checkpoint)
    if checkpoint is None or not (resume and checkpoint.exists()):
        plain = images.loader("train", TEACHER_BATCH, indexed=True)
        labels.start(teacher_logits(teacher, plain, device=settings.device))
    batches = images.loader(
        "train", settings.batch_size, seed=settings.seed, augment="mild", shuffle=True, indexed=True
    )
    result = fit(
        student, batches, settings, soft=labels, validation=validation, stage=stage, progress=progress,
        checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    return result, labels


def _recipe(recipe: str | Recipe | TrainSettings) -> Recipe:
    match recipe:
        case str():
            return find_recipe(recipe)
        case TrainSettings():
            return Recipe(recipe)
        case Recipe():
            return recipe


def _training_batches(data: Loader | TrainingData, recipe: Recipe) -> Loader:
    """Batches of the first training. Raises: ConfigError when batches alone are given and more is needed."""
    if isinstance(data, TrainingData):
        return training_loader(data, recipe)
    if recipe.expand or recipe.refine.epochs:
        raise ConfigError(
            f"{type(data).__name__}: a recipe that expands the data or refines labels wants the data itself, as "
            "curlfx.load_data gives it, not batches of it"
        )
    return data


def training_loader(data: TrainingData, recipe: Recipe) -> Loader:
    """Batches of the first training of ``recipe``."""
    settings = recipe.train
    images = data.expanded(settings.seed) if recipe.expand else data
    return images.loader("train", settings.batch_size, seed=settings.seed, augment=True, shuffle=True)
