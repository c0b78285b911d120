"""Recovery of a slim network under its dense one: enlarged, as it is, and with labels that are refined meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from curlfx.errors import ConfigError
from curlfx.graph.traced import TracedModel
from curlfx.progress import Progress
from curlfx.recovery.batches import Loader
from curlfx.recovery.fit import FitResult, fit
from curlfx.recovery.overparam import as_traced, fit_expanded
from curlfx.recovery.processes import processes
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
        expanded: The training of the enlarged network, which came first; None without.
    """

    trained: FitResult
    refined: FitResult | None = None
    labels: SoftLabels | None = None
    expanded: FitResult | None = None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy at the end, in [0, 1]; None without a validation loader or an epoch."""
        done = [one for one in self._all if one.history]
        return done[-1].accuracy if done else None

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(one.seconds for one in self._all)

    @property
    def _all(self) -> list[FitResult]:
        return [one for one in (self.expanded, self.trained, self.refined) if one is not None]


def recover(
    student: nn.Module | TracedModel,
    data: Loader | TrainingData,
    recipe: str | Sequence[str] | Recipe | TrainSettings = "distillation",
    *,
    teacher: nn.Module | TracedModel,
    validation: Loader | None = None,
    stage: str = "recover",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> RecoveryResult:
    """Train a slim network, in place, with its dense one as the teacher.

        curlfx.recover(slim, curlfx.load_data("imagefolder:birds"), "curl", teacher=model)

    Args:
        student: The slim network: as a graph, its module, or a module that `curlfx.slim_` narrowed.
        data: What `curlfx.load_data` gives; or, for a recipe without expansion and refinement, batches of images and
            labels.
        recipe: A name of `curlfx.recovery.RECIPES`, ``["overparam", another name]``, a recipe of one's own, or the
            settings of a single training.
        teacher: The dense network, likewise.
        validation: Judged after every epoch; nothing is chosen by it.
        resume: Go on from these files if they exist, to the same bits.

    Raises: as `fit`; ConfigError when the recipe needs more than batches.
    """
    chosen = _recipe(recipe)
    plain = _training_batches(data, chosen)
    enlarged = None
    if chosen.overparam.train.epochs:
        enlarged = _enlarged(
            student, data, chosen, teacher=teacher, validation=validation, stage=stage, progress=progress,
            checkpoint=checkpoint, resume=resume,
        )  # fmt: skip
    student, teacher = (one.module if isinstance(one, TracedModel) else one for one in (student, teacher))
    trained = fit(
        student, plain, chosen.train, teacher=teacher, validation=validation, stage=stage,
        progress=progress, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    if chosen.refine.epochs == 0 or not isinstance(data, TrainingData):
        return RecoveryResult(trained, expanded=enlarged)
    refined, labels = refine(
        student, data, chosen, teacher=teacher, validation=validation, stage=f"{stage}, refine", progress=progress,
        checkpoint=_beside(checkpoint, "refine"), resume=resume,
    )  # fmt: skip
    return RecoveryResult(trained, refined, labels, enlarged)


def _enlarged(
    student: nn.Module | TracedModel,
    data: Loader | TrainingData,
    recipe: Recipe,
    *,
    teacher: nn.Module | TracedModel,
    validation: Loader | None,
    stage: str,
    progress: Progress | None,
    checkpoint: Path | None,
    resume: bool,
) -> FitResult:
    """The first training of ``recipe``; modules are traced, and get the weights afterwards."""
    settings = recipe.overparam
    loader = enlarging_loader(data, recipe) if isinstance(data, TrainingData) else data
    slim = as_traced(student, loader)
    result = fit_expanded(
        slim, loader, settings, teacher=as_traced(teacher, loader), validation=validation,
        stage=f"{stage}, overparam", progress=progress, checkpoint=_beside(checkpoint, "overparam"), resume=resume,
    )  # fmt: skip
    if isinstance(student, nn.Module) and student is not slim.module:
        student.load_state_dict(slim.module.state_dict())
    return result


def _beside(checkpoint: Path | None, name: str) -> Path | None:
    return None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-{name}")


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
    """The last training of ``recipe`` alone: soft labels start as the teacher's logits and move to the student's.

    Every step moves the labels of its batch by plain gradient descent along with the weights. Arguments and errors: as
    for `recover`.

    Source: CURL, arXiv:1911.08114, label refinement.
    """
    settings = recipe.refine
    images = data.expanded(settings.seed) if recipe.expand_refine else data
    labels = SoftLabels(checkpoint)

    def start() -> None:
        if checkpoint is None or not (resume and checkpoint.exists()):
            plain = images.loader("train", TEACHER_BATCH, indexed=True)
            labels.start(teacher_logits(teacher, plain, device=settings.device))

    processes().on_leader(start)
    batches = images.loader(
        "train", settings.batch_size, seed=settings.seed, augment="mild", shuffle=True, indexed=True
    )
    result = fit(
        student, batches, settings, soft=labels, validation=validation, stage=stage, progress=progress,
        checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    return result, labels


def _recipe(recipe: str | Sequence[str] | Recipe | TrainSettings) -> Recipe:
    match recipe:
        case TrainSettings():
            return Recipe(recipe)
        case Recipe():
            return recipe
        case _:
            return find_recipe(recipe)


def _training_batches(data: Loader | TrainingData, recipe: Recipe) -> Loader:
    """Batches of the training of the weights alone. Raises: ConfigError for batches where more is needed."""
    if isinstance(data, TrainingData):
        return training_loader(data, recipe)
    if recipe.expand or recipe.refine.epochs:
        raise ConfigError(
            f"{type(data).__name__}: a recipe that expands the data or refines labels wants the data itself, as "
            "curlfx.load_data gives it, not batches of it"
        )
    return data


def training_loader(data: TrainingData, recipe: Recipe) -> Loader:
    """Batches of the training of the weights alone."""
    settings = recipe.train
    images = data.expanded(settings.seed) if recipe.expand else data
    return images.loader("train", settings.batch_size, seed=settings.seed, augment=True, shuffle=True)


def enlarging_loader(data: TrainingData, recipe: Recipe) -> Loader:
    """Batches of the training of the enlarged network."""
    settings = recipe.overparam.train
    return data.loader("train", settings.batch_size, seed=settings.seed, augment=True, shuffle=True)
