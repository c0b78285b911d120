"""The state of one training and its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from curlfx.errors import CheckError, ModelError, WeightsError
from curlfx.recovery.average import WeightAverage
from curlfx.recovery.batches import Loader, batch_count, batches, seeded
from curlfx.recovery.checkpoint import Checkpoint, EpochRecord
from curlfx.recovery.evaluate import evaluate
from curlfx.recovery.hardware import Placement, arrange, choose_device, choose_placement, home_of
from curlfx.recovery.loss import check_labels, hits, logits_of, loss_of
from curlfx.recovery.meter import Meter
from curlfx.recovery.settings import TrainSettings

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
    ) -> None:
        self.module, self.loader, self.settings, self.validation = module, loader, settings, validation
        self.teacher = teacher if settings.distillation > 0 else None
        self.steps = batch_count(loader)
        self.device = choose_device(settings.device)
        self.placement: Placement | None = None
        self.epoch, self.history = 0, list[EpochRecord]()
        self.networks = [network for network in (self.module, self.teacher) if network is not None]
        self.homes = [home_of(network) for network in self.networks]
        for network in self.networks:
            network.to(self.device).eval()
        self.optimizer = _optimizer(module, settings)
        self.average = None if settings.ema_decay is None else WeightAverage(module, settings.ema_decay)

    def run_epoch(self, watch: Callable[[int, Meter], None]) -> None:
        """One pass over the loader; ``watch`` is called after every step with its number in the epoch, from 1."""
        started, meter, rate = time.perf_counter(), Meter(), 0.0
        self.module.train()
        every = 1 if self.device.type == "cpu" else _FLUSH_ON_GPU
        with seeded(self.settings.seed, self.epoch, self.device):
            for step, (images, labels) in enumerate(batches(self.loader, self.epoch), start=1):
                rate = self.settings.learning_rate(self.epoch * self.steps + step - 1, self.steps)
                self._step(images, labels, rate, meter)
                if step % every == 0 or step == self.steps:
                    self._flush(meter, rate)
                watch(step, meter)
        self._flush(meter, rate)
        self.module.eval()
        validation = self._validate()
        self.epoch += 1
        seconds = time.perf_counter() - started
        self.history.append(EpochRecord(self.epoch, meter.loss, meter.accuracy, validation, rate, seconds))

    def _step(self, images: Tensor, labels: Tensor, rate: float, meter: Meter) -> None:
        if self.placement is None:
            chosen = self.settings
            self.placement = choose_placement(self.networks, images, self.device, chosen.amp, chosen.memory_format)
        images, judged = self.placement.images(images), None
        if self.teacher is not None:
            with torch.inference_mode(), self.placement.autocast():
                judged = logits_of(self.teacher(images))
            judged = judged.clone()  # outside inference mode: the backward pass saves it
        with self.placement.autocast():
            logits = logits_of(self.module(images))
        check_labels(logits, labels)
        labels = labels.to(self.device, non_blocking=True)
        loss = loss_of(logits, labels, judged, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_gradient is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        meter.add(loss, *hits(logits.detach(), labels), len(images))

    def _flush(self, meter: Meter, rate: float) -> None:
        bad = meter.flush()
        if bad is not None:
            where = f"epoch {self.epoch + 1}, step {bad} of {self.steps}"
            raise CheckError(
                f"{where}: the loss is not finite at learning rate {rate:.3g}; "
                f"lower it (lr={self.settings.lr / 10:g}), warm up (warmup_epochs=1), or clip (clip_gradient=1)"
            )

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        with nullcontext() if self.average is None else self.average.applied():
            return evaluate(self.module, self.validation, device=str(self.device))

    def snapshot(self) -> Checkpoint:
        """Everything a later process needs to go on as if nothing had happened."""
        average = None if self.average is None else self.average.state()
        model, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        return Checkpoint(self.epoch, self.steps, self.settings, model, optimizer, average, tuple(self.history))

    def restore(self, path: Path) -> None:
        """Take up the checkpoint at ``path``. Raises: WeightsError, ConfigError."""
        saved = Checkpoint.load(path)
        saved.check_resumable(path, self.settings, self.steps)
        try:
            self.module.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{path}: belongs to another network ({reason}); delete it to start afresh") from error
        if self.average is not None and saved.average is not None:
            self.average.restore(saved.average["steps"], saved.average["average"])
        self.epoch, self.history = saved.epoch, list(saved.history)

    def release(self) -> None:
        """Put the networks back where they were, in the contiguous layout and in eval mode."""
        for network, home in zip(self.networks, self.homes, strict=True):
            network.to(home).eval()
            arrange(network, torch.contiguous_format)


def _optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError("the network has no parameter that requires a gradient; nothing to train")
    decayed = [parameter for parameter in trained if settings.decay_vectors or parameter.dim() > 1]
    spared = [parameter for parameter in trained if not settings.decay_vectors and parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
