"""The one training loop: it makes a dense network from scratch, recovers a slim one, and refines labels meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from curlfx.progress import Progress, StepEvent, StepTimer
from curlfx.recovery.batches import Loader
from curlfx.recovery.checkpoint import Checkpoint, EpochRecord
from curlfx.recovery.hardware import reproducible
from curlfx.recovery.loop import Loop
from curlfx.recovery.meter import Meter
from curlfx.recovery.settings import TrainSettings
from curlfx.recovery.soft_labels import SoftLabels
from curlfx.recovery.supplement import Supplement


@dataclass(frozen=True)
class FitResult:
    """What a training did; the network itself was changed in place.

    Attributes:
        history: One record per epoch, those before a resumption included.
        seconds: Wall-clock time of all epochs.
        resumed_after: Epochs that came from a checkpoint.
    """

    history: tuple[EpochRecord, ...]
    seconds: float
    resumed_after: int = 0

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy after the last epoch, in [0, 1]; None without a validation loader or an epoch."""
        return self.history[-1].validation if self.history else None


def fit(
    module: nn.Module,
    loader: Loader,
    settings: TrainSettings,
    *,
    teacher: nn.Module | None = None,
    soft: SoftLabels | None = None,
    supplement: Supplement | None = None,
    validation: Loader | None = None,
    stage: str = "train",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> FitResult:
    """Train ``module`` in place; afterwards it is in eval mode, where it was before, in the contiguous layout.

    Deterministic for ``settings.seed``, a loader that is, a device and a number of threads. Several processes
    (`curlfx.recovery.joined`) that all call this share every batch, and end with the weights that one would end with,
    to rounding; only the first one writes, and shows progress.

    Args:
        teacher: A network to distil from, put into eval mode; its images are the student's.
        soft: Labels to train along, row i that of the image at position i; the loader then gives positions, and the
            teacher has no part.
        supplement: What the training does beside.
        validation: Judged in float32 after every epoch.
        checkpoint: File written after every epoch.
        resume: Go on from ``checkpoint`` if it exists.

    Raises: DataError, ModelError, ConfigError as the parts do; CheckError when the loss is no longer finite;
        OutputError when the checkpoint cannot be written; WeightsError when it is not one of this network. Over
        several processes also CheckError when one is lost, or they were not given the same.
    """
    loop = Loop(module, loader, settings, teacher, validation, soft, supplement)
    group = loop.group
    try:
        if checkpoint is not None and resume:
            saved = group.on_leader(lambda: Checkpoint.load(checkpoint) if checkpoint.exists() else None)
            if saved is not None:
                loop.restore(saved, checkpoint)
        if soft is not None:
            soft.follow(group)
        resumed_after = loop.epoch
        watch = _watcher(loop, stage, progress if group.leads else None)
        with reproducible(loop.device):
            while loop.epoch < settings.epochs:
                with nullcontext() if soft is None else soft.learning():
                    loop.run_epoch(watch)
                if checkpoint is not None:
                    group.on_leader(lambda: loop.snapshot().save(checkpoint))
                    if soft is not None:
                        soft.forget()
        if loop.average is not None:
            loop.average.apply()
        group.align(module)
    finally:
        loop.release()
    return FitResult(tuple(loop.history), sum(record.seconds for record in loop.history), resumed_after)


def _watcher(loop: Loop, stage: str, progress: Progress | None) -> Callable[[int, Meter], None]:
    total = loop.settings.epochs * loop.steps
    timer = StepTimer(total, done=loop.epoch * loop.steps)

    def watch(step: int, meter: Meter) -> None:
        if progress is None:
            return
        done = min(total, loop.epoch * loop.steps + step)
        left = timer.seconds_left(done)
        progress.on_step(StepEvent(stage, loop.epoch + 1, done, total, meter.loss, meter.accuracy, left))

    return watch
