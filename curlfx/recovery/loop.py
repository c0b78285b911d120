"""The state of one training and its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from curlfx.errors import CheckError, ConfigError, ModelError, WeightsError
from curlfx.recovery.average import WeightAverage
from curlfx.recovery.batch_norm import WholeBatchNorm, backward, check_visible
from curlfx.recovery.batches import IndexedBatch, Loader, batch_count, batches, drawing, indexed_batches, seeded
from curlfx.recovery.checkpoint import Checkpoint, EpochRecord
from curlfx.recovery.evaluate import evaluate
from curlfx.recovery.hardware import Placement, arrange, choose_device, choose_placement, home_of
from curlfx.recovery.loss import check_labels, hits, logits_of, loss_of, refining_loss
from curlfx.recovery.meter import Meter
from curlfx.recovery.mixup import Mixup
from curlfx.recovery.processes import Processes, processes
from curlfx.recovery.settings import TrainSettings
from curlfx.recovery.soft_labels import SoftLabels
from curlfx.recovery.supplement import Supplement

_FLUSH_ON_GPU = 16  # steps between looks at the loss: each look waits for the device


class Loop:
    """State of one training between its epochs."""

    def __init__(
        self,
        module: nn.Module,
        loader: Loader,
        settings: TrainSettings,
        teacher: nn.Module | None,
        validation: Loader | None,
        soft: SoftLabels | None,
        supplement: Supplement | None = None,
    ) -> None:
        self.module, self.loader, self.settings, self.validation = module, loader, settings, validation
        self.supplement = supplement or Supplement()
        asked = self.supplement.asks_teacher or (settings.distillation > 0 and soft is None)
        self.teacher = teacher if asked else None
        self.soft, self.mixup = soft, None if settings.mixup == 0 else Mixup(settings.mixup, settings.seed, epoch=0)
        if soft is not None and settings.mixup > 0:
            raise ConfigError(f"mixup = {settings.mixup}: a blend of images has no soft label of its own; want mixup=0")
        self.steps = batch_count(loader)
        self.group = processes()
        self.device = choose_device(settings.device)
        self.placement: Placement | None = None
        self.epoch, self.history = 0, list[EpochRecord]()
        self.networks = [network for network in (self.module, self.teacher) if network is not None]
        self.homes = [home_of(network) for network in self.networks]
        try:
            self._begin(module, settings)
        except BaseException:
            self.release()
            raise

    def _begin(self, module: nn.Module, settings: TrainSettings) -> None:
        """Move the networks to the device, and make what the training needs there."""
        if self.group.count > 1:
            check_visible(module)
        for network in self.networks:
            network.to(self.device).eval()
        agree_on_settings(self.group, settings, self.steps)
        for network, name in zip(self.networks, ("the network", "the teacher"), strict=False):
            self.group.align(network, name)
        self.optimizer = make_optimizer(module, settings, self.supplement.undecayed)
        self.average = None if settings.ema_decay is None else WeightAverage(module, settings.ema_decay)
        if self.average is not None and self.supplement.replaces:
            raise ConfigError(f"ema_decay = {settings.ema_decay}: weights change beside the training; leave it out")
        self.supplement.start(self.optimizer)

    def run_epoch(self, watch: Callable[[int, Meter], None]) -> None:
        """One pass over the loader; ``watch`` is called after every step with its number in the epoch, from 1."""
        started, meter, rate = time.perf_counter(), Meter(), 0.0
        self.group.align(self.module)
        self.module.train()
        self.supplement.before_epoch(self.module, self.epoch)
        every = 1 if self.device.type == "cpu" else _FLUSH_ON_GPU
        if self.mixup is not None:
            self.mixup = Mixup(self.settings.mixup, self.settings.seed, self.epoch)
        with seeded(self.settings.seed, self.epoch, self.device):
            for step, batch in enumerate(self._drawn(), start=1):
                rate = self.settings.learning_rate(self.epoch * self.steps + step - 1, self.steps)
                if step == 1:
                    agree_on_batch(self.group, batch.labels, self.epoch)
                with as_one(self.group, (self.settings.seed, self.epoch, step), self.device):
                    self._step(batch, rate, meter)
                if step % every == 0 or step == self.steps:
                    self._flush(meter, rate)
                watch(step, meter)
        self._flush(meter, rate)
        self.module.eval()
        if self.supplement.after_epoch(self.module, self.epoch, self.optimizer):
            self.placement = None  # new parameters have to be laid out
        validation = self._validate()
        self.epoch += 1
        seconds = time.perf_counter() - started
        self.history.append(EpochRecord(self.epoch, meter.loss, meter.accuracy, validation, rate, seconds))

    def _drawn(self) -> Iterator[IndexedBatch]:
        """Batches of this epoch; positions count only where labels are refined."""
        if self.soft is not None:
            yield from indexed_batches(self.loader, self.epoch)
            return
        for images, labels in batches(self.loader, self.epoch):
            yield IndexedBatch(images, labels, torch.empty(0, dtype=torch.int64))

    def _step(self, batch: IndexedBatch, rate: float, meter: Meter) -> None:
        """One step on this process's part of a batch."""
        total = len(batch.images)
        rows = self.group.share(total)
        mix = None if self.mixup is None else self.mixup.draw(total)
        images = batch.images if mix is None else mix.images(batch.images.to(self.device, non_blocking=True))
        images = images[rows].to(self.device, non_blocking=True)
        placement = self._place(images)
        images = placement.images(images)
        judged, taught = self._judged(images, placement)
        with placement.autocast():
            output = self.module(images)
        logits = logits_of(output)
        labels = batch.labels[rows]
        check_labels(logits, labels)
        labels = labels.to(self.device, non_blocking=True)
        soft = None if self.soft is None else self.soft.rows(batch.positions[rows]).to(self.device).requires_grad_()
        if soft is None:
            blend = None if mix is None else mix.blend(batch.labels.to(self.device, non_blocking=True), rows)
            loss = loss_of(logits, labels, judged, self.settings, blend)
        else:
            loss = refining_loss(logits, labels, soft, self.settings)
        extra = self.supplement.loss(output, taught)
        loss = loss if extra is None else loss + extra
        self._descend(loss if self.group.count == 1 else loss * (len(images) / total), rate)
        if self.soft is not None and soft is not None and soft.grad is not None:
            gradient = self.group.joined_rows(soft.grad, rows, total)
            self.soft.descend(batch.positions, gradient, self.settings.label_lr)
        wanted = labels if mix is None else mix.dominant(batch.labels)[rows].to(self.device, non_blocking=True)
        meter.add(loss, *hits(logits.detach(), wanted), len(images))

    def _place(self, images: Tensor) -> Placement:
        if self.placement is None:
            chosen = self.settings
            self.placement = choose_placement(self.networks, images, self.device, chosen.amp, chosen.memory_format)
        return self.placement

    def _judged(self, images: Tensor, placement: Placement) -> tuple[Tensor | None, object]:
        """The teacher's logits for what the student sees, where they count, and what the supplement takes from it."""
        if self.teacher is None:
            return None, None
        with torch.inference_mode(), placement.autocast():
            output = self.teacher(images)
            taught = self.supplement.taught(output)
        if self.settings.distillation == 0:
            return None, taught
        return logits_of(output).clone(), taught  # a clone outside inference mode: the backward pass saves it

    def _descend(self, loss: Tensor, rate: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss, self.group)
        self.group.add_gradients(self.module.parameters())
        if self.settings.clip_gradient is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _flush(self, meter: Meter, rate: float) -> None:
        bad = meter.flush(self.group)
        if bad is not None:
            where = f"epoch {self.epoch + 1}, step {bad} of {self.steps}"
            raise CheckError(
                f"{where}: the loss is not finite at learning rate {rate:.3g}; "
                f"lower it (lr={self.settings.lr / 10:g}), warm up (warmup_epochs=1), or clip (clip_gradient=1)"
            )

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        averaged = nullcontext() if self.average is None else self.average.applied()
        with averaged, seeded(self.settings.seed, self.epoch, self.device):  # all judge parts of the same batches
            return evaluate(self.module, self.validation, device=str(self.device), group=self.group)

    def snapshot(self) -> Checkpoint:
        """Everything a later process needs to go on as if nothing had happened."""
        average = None if self.average is None else self.average.state()
        model, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        history, beside = tuple(self.history), self.supplement
        return Checkpoint(
            self.epoch, self.steps, self.settings, model, optimizer, average, history, beside.described, beside.state()
        )

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Take up the checkpoint that was at ``path``. Raises: WeightsError, ConfigError."""
        saved.check_resumable(path, self.settings, self.steps, self.supplement.described)
        self.supplement.restore(saved.state)
        try:
            self.module.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{path}: belongs to another network ({reason}); delete it to start afresh") from error
        if self.average is not None and saved.average is not None:
            self.average.restore(saved.average["steps"], saved.average["average"])
        if (soft := self.soft) is not None:
            self.group.on_leader(lambda: soft.restore(saved.epoch))
        self.epoch, self.history = saved.epoch, list(saved.history)

    def release(self) -> None:
        """Put the networks back where they were, in the contiguous layout and in eval mode."""
        self.supplement.finish()
        for network, home in zip(self.networks, self.homes, strict=True):
            network.to(home).eval()
            arrange(network, torch.contiguous_format)


@contextmanager
def as_one(group: Processes, seeds: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Let processes compute a step as one would, but for dropout: each draws random numbers of its own."""
    if group.count == 1:
        yield
        return
    with drawing((*seeds, group.rank), device), WholeBatchNorm(group):
        yield


def agree_on_settings(group: Processes, settings: TrainSettings, steps: int) -> None:
    """Insist that all processes train alike. Raises: CheckError."""
    shown = [f"{name} = {value!r}" for name, value in asdict(settings).items() if name != "device"]
    group.agree("the training", "\n".join([*shown, f"{steps} batches per epoch"]))


def agree_on_batch(group: Processes, labels: Tensor, epoch: int) -> None:
    """Insist that the first batch of an epoch is the same in all processes. Raises: CheckError."""
    if group.count > 1:
        shown = (f"image {place} of class {label}" for place, label in enumerate(labels.tolist()))
        group.agree(f"the first batch of epoch {epoch + 1}", "\n".join(shown))


def make_optimizer(module: nn.Module, settings: TrainSettings, undecayed: Collection[str] = ()) -> torch.optim.SGD:
    """SGD for all that requires a gradient; no weight decay for those in ``undecayed``, nor for vectors by default.

    Raises: ModelError when nothing requires a gradient.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ModelError("the network has no parameter that requires a gradient; nothing to train")
    spared = {
        name for name, parameter in trained.items()
        if name in undecayed or not (settings.decay_vectors or parameter.dim() > 1)
    }  # fmt: skip
    parts = ({name for name in trained if name not in spared}, settings.weight_decay), (spared, 0.0)
    groups = [
        {"params": [trained[name] for name in trained if name in part], "weight_decay": decay}
        for part, decay in parts
        if part
    ]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
