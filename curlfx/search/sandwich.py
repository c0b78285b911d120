"""Training of a supernet: the whole network, the narrowest and random ones in every step, by in-place distillation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curlfx.errors import CheckError, ConfigError, WeightsError
from curlfx.progress import Progress, StepEvent, StepTimer
from curlfx.recovery.batch_norm import backward, batch_statistics
from curlfx.recovery.batches import Loader, batch_count, batches, seeded
from curlfx.recovery.checkpoint import Checkpoint, EpochRecord
from curlfx.recovery.fit import FitResult
from curlfx.recovery.hardware import Placement, arrange, choose_placement, reproducible
from curlfx.recovery.loop import agree_on_batch, agree_on_settings, as_one, make_optimizer
from curlfx.recovery.loss import check_labels, hits, supervised
from curlfx.recovery.meter import Meter
from curlfx.recovery.processes import ALONE, Processes, processes
from curlfx.recovery.settings import TrainSettings
from curlfx.search.digest import digest
from curlfx.search.space import Genome
from curlfx.search.supernet import Supernet

DEFAULT = TrainSettings(epochs=20, lr=0.02, batch_size=128, warmup_epochs=1.0)


@dataclass(frozen=True)
class SandwichSettings:
    """What every step trains.

    Attributes:
        train: Optimiser, schedule and seed; its distillation and mixup have no part.
        random: Random networks in every step.
        full: Whether the whole network learns from the labels; without, it is the target as it is.
        tiny: Whether the narrowest network is in every step; without, another random one is.

    Raises: ConfigError for settings that this training does not know.
    Source: stage-wise pruning (arXiv:2011.04908); the sandwich rule of slimmable networks (arXiv:1903.05134).
    """

    train: TrainSettings = field(default=DEFAULT)
    random: int = 2
    full: bool = True
    tiny: bool = True

    def __post_init__(self) -> None:
        if self.random < 0 or self.random + self.tiny + self.full == 0:
            raise ConfigError(f"random = {self.random}: want a number of networks, at least one in all")
        if self.train.mixup > 0:
            raise ConfigError(f"mixup = {self.train.mixup}: a supernet is trained on whole images; want mixup=0")
        if self.train.ema_decay is not None:
            raise ConfigError(f"ema_decay = {self.train.ema_decay}: a supernet keeps no average; leave it out")


def train_supernet(
    supernet: Supernet,
    loader: Loader,
    settings: SandwichSettings | None = None,
    *,
    stage: str = "supernet",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> FitResult:
    """Train the shared weights, in place. Deterministic, and shared by several processes, as `curlfx.recovery.fit.fit`.

    Args:
        supernet: What is trained; its running statistics stay as they were and mean nothing afterwards.
        loader: Training images with labels.
        settings: None takes the defaults.
        stage: For ``progress``.
        progress: Sees loss and accuracy of the whole network.
        checkpoint: File written after every epoch.
        resume: Go on from ``checkpoint`` if it exists, to the same bits.

    Raises: DataError, ModelError, CheckError, ConfigError, WeightsError, OutputError as `fit`.
    """
    settings = settings or SandwichSettings()
    loop = _Loop(supernet, loader, settings)
    group = loop.group
    if checkpoint is not None and resume:
        saved = group.on_leader(lambda: Checkpoint.load(checkpoint) if checkpoint.exists() else None)
        if saved is not None:
            loop.restore(saved, checkpoint)
    done_before = loop.epoch
    timer = StepTimer(settings.train.epochs * loop.steps, done=loop.epoch * loop.steps)

    def watch(step: int, meter: Meter) -> None:
        if progress is not None and group.leads:
            done, total = loop.epoch * loop.steps + step, settings.train.epochs * loop.steps
            left = timer.seconds_left(done)
            progress.on_step(StepEvent(stage, loop.epoch + 1, done, total, meter.loss, meter.accuracy, left))

    try:
        with reproducible(supernet.device):
            while loop.epoch < settings.train.epochs:
                loop.run_epoch(watch)
                if checkpoint is not None:
                    group.on_leader(lambda: loop.snapshot().save(checkpoint))
        group.align(loop.module)
    finally:
        arrange(supernet.network.module, torch.contiguous_format)
    return FitResult(tuple(loop.history), sum(record.seconds for record in loop.history), done_before)


def accumulate(
    supernet: Supernet,
    images: Tensor,
    labels: Tensor,
    genomes: list[Genome],
    settings: SandwichSettings,
    placement: Placement | None = None,
    group: Processes = ALONE,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One step's gradients: backward through one term after the other, so that one stage's activations are held.

    Args:
        images: A batch, or this process's part of one.
        group: Processes that have the parts.
        weight: Share of the batch that this part is; gradients are those of the mean loss times this.

    Returns: the sum of all losses, and the logits of the whole network, both detached.
    """
    placement = placement or Placement(supernet.device)
    borders, total = _whole(supernet, images, labels, settings, placement, group, weight)
    spreads = [None if group.count == 1 else _spread(border, group) for border in borders[1:-1]]
    for genome in genomes:
        gates = _gates(supernet, genome, placement)
        for stage in range(len(supernet.stages)):
            with placement.autocast():
                output = supernet.forward(stage, borders[stage], gates)
            spread = spreads[stage] if stage < len(spreads) else None
            loss = supernet.loss(stage, output, borders[stage + 1], gates, spread)
            if loss.requires_grad:  # a stage may have nothing to train
                backward(loss * weight, group)
            total = total + loss.detach()
    return total, borders[-1]


def _spread(border: Tensor, group: Processes) -> Tensor:
    """Variance of all parts of a border, a scalar."""
    return batch_statistics(border.flatten(1).unsqueeze(1), group)[1].squeeze(0)


def _whole(
    supernet: Supernet,
    images: Tensor,
    labels: Tensor,
    settings: SandwichSettings,
    placement: Placement,
    group: Processes,
    weight: float,
) -> tuple[list[Tensor], Tensor]:
    """Images and what leaves every stage of the whole network, detached; its loss, after the backward pass."""
    with torch.set_grad_enabled(settings.full), placement.autocast():
        values = list(supernet.outputs(images, _gates(supernet, supernet.space.full, placement)))
    check_labels(values[-1], labels)
    loss = supervised(values[-1], labels, settings.train)
    if loss.requires_grad:
        backward(loss * weight, group)
    return [images, *(value.detach() for value in values)], loss.detach() * settings.full


def _gates(supernet: Supernet, genome: Genome, placement: Placement) -> Tensor:
    """Gates in the type of the forward pass, so that products with them keep it; 0 and 1 are exact in any."""
    return supernet.gates(genome).to(placement.dtype or supernet.dtype)


class _Loop:
    """State between epochs."""

    def __init__(self, supernet: Supernet, loader: Loader, settings: SandwichSettings) -> None:
        self.supernet, self.loader, self.settings = supernet, loader, settings
        self.module = supernet.network.module
        self.steps = batch_count(loader)
        self.group = processes()
        agree_on_settings(self.group, settings.train, self.steps)
        self.group.align(self.module)
        self.optimizer = make_optimizer(self.module, settings.train)
        self.start = digest(self.module.state_dict().values())
        self.placement: Placement | None = None
        self.epoch, self.history = 0, list[EpochRecord]()

    @property
    def described(self) -> dict[str, Any]:
        """What the weights depend on beside the settings of the optimiser and the images."""
        own = {name: getattr(self.settings, name) for name in ("random", "full", "tiny")}
        stages, space = ", ".join(stage.end for stage in self.supernet.stages), self.supernet.space
        hashes = {"kept channels": digest((), space.order), "start weights": self.start}
        return {**own, "stages": stages, "widths": str(space.grids), **hashes}

    def run_epoch(self, watch: Callable[[int, Meter], None]) -> None:
        """One pass over the loader."""
        started, meter, rate, train = time.perf_counter(), Meter(), 0.0, self.settings.train
        generator = np.random.default_rng((train.seed, self.epoch))
        self.group.align(self.module)
        with seeded(train.seed, self.epoch, self.supernet.device):
            for step, (images, labels) in enumerate(batches(self.loader, self.epoch), start=1):
                rate = train.learning_rate(self.epoch * self.steps + step - 1, self.steps)
                if step == 1:
                    agree_on_batch(self.group, labels, self.epoch)
                with as_one(self.group, (train.seed, self.epoch, step), self.supernet.device):
                    self._step(images, labels, generator, rate, meter)
                bad = meter.flush(self.group)
                if bad is not None:
                    raise CheckError(
                        f"supernet, epoch {self.epoch + 1}, step {bad} of {self.steps}: the loss is not finite at "
                        f"learning rate {rate:.3g}; lower it (lr={train.lr / 10:g}) or clip (clip_gradient=1)"
                    )
                watch(step, meter)
        self.epoch += 1
        seconds = time.perf_counter() - started
        self.history.append(EpochRecord(self.epoch, meter.loss, meter.accuracy, None, rate, seconds))

    def _step(self, images: Tensor, labels: Tensor, generator: np.random.Generator, rate: float, meter: Meter) -> None:
        settings, device = self.settings, self.supernet.device
        rows, total = self.group.share(len(images)), len(images)
        images, labels = images[rows].to(device, non_blocking=True), labels[rows]
        placement = self._place(images)
        self.optimizer.zero_grad(set_to_none=True)
        genomes = draw(self.supernet, settings, generator)
        wanted = labels.to(device, non_blocking=True)
        images, share = placement.images(images), len(images) / total
        loss, logits = accumulate(self.supernet, images, wanted, genomes, settings, placement, self.group, share)
        self.group.add_gradients(self.module.parameters())
        if settings.train.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), settings.train.clip_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        meter.add(loss, *hits(logits, wanted), len(images))

    def _place(self, images: Tensor) -> Placement:
        if self.placement is None:
            train = self.settings.train
            self.placement = choose_placement(
                [self.module], images, self.supernet.device, train.amp, train.memory_format
            )
        return self.placement

    def snapshot(self) -> Checkpoint:
        """Everything a later process needs."""
        model, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        history, train = tuple(self.history), self.settings.train
        return Checkpoint(self.epoch, self.steps, train, model, optimizer, None, history, self.described)

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Take up the checkpoint that was at ``path``. Raises: WeightsError, ConfigError."""
        saved.check_resumable(path, self.settings.train, self.steps, self.described)
        try:
            self.module.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{path}: belongs to another network ({reason}); delete it to start afresh") from error
        self.epoch, self.history = saved.epoch, list(saved.history)


def draw(supernet: Supernet, settings: SandwichSettings, generator: np.random.Generator) -> list[Genome]:
    """The narrow networks of one step."""
    space, count = supernet.space, settings.random + (not settings.tiny)
    return [space.random(generator) for _ in range(count)] + [space.tiny] * settings.tiny
